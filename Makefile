# kube-kek. `make help` lists the targets. Needed: Go, git, make, a C compiler
# (for the race detector) and the Go module proxy; all else is built from there.
GO       ?= go
FUZZTIME ?= 30s
LDFLAGS  := -s -w

.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## build the daemon and kubectl-kek into bin/
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./cmd/...

.PHONY: run
run: build ## try it: a keyset, the daemon on .run/, an Encrypt and a Decrypt; stays until Ctrl-C
	./hack/run.sh

.PHONY: demo
demo: ## a control plane, a Secret, a rotation and a KMS outage, narrated
	cd e2e && $(GO) run ./cmd/demo

.PHONY: test
test: ## unit and conformance tests, and kube-apiserver's own storage code against the socket
	$(GO) test -race ./...
	cd e2e && $(GO) test ./storage/...

.PHONY: e2e
e2e: ## the scenarios, on a real kube-apiserver and etcd (built once into the cache folder)
	cd e2e && $(GO) run ./cmd/parts
	cd e2e && $(GO) test -count=1 -timeout 40m -v .
	cd e2e && $(GO) test -count=1 -timeout 20m -v ./homes/...

.PHONY: lint
lint: ## gofmt, vet, staticcheck
	@test -z "$$(gofmt -l . | tee /dev/stderr)" || { echo 'run gofmt -w on these files'; exit 1; }
	$(GO) vet ./...
	$(GO) tool -modfile=tools/go.mod staticcheck ./...
	$(GO) build -modfile=tools/go.mod -o bin/staticcheck honnef.co/go/tools/cmd/staticcheck
	cd e2e && $(GO) vet ./... && $(CURDIR)/bin/staticcheck ./...

.PHONY: bench
bench: build ## the figures of the README, as ratios against a baseline in the same run
	cd e2e && $(GO) run ./cmd/bench

# Up to 64 inputs a target that reached new code are kept beside the tests, where
# `make test` runs them too; the rest of the corpus stays in Go's build cache.
.PHONY: fuzz
fuzz: ## fuzz every parser for FUZZTIME each (30s unless set)
	@set -e; cache=$$($(GO) env GOCACHE)/fuzz; for package in $$($(GO) list ./...); do \
		dir=$$($(GO) list -f '{{.Dir}}' $$package); \
		for target in $$(cat $$dir/*_test.go 2>/dev/null | sed -n 's/^func \(Fuzz[A-Za-z0-9]*\)(.*/\1/p'); do \
			echo "== $$package $$target"; \
			$(GO) test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 1s $$package; \
			mkdir -p $$dir/testdata/fuzz/$$target; \
			for input in $$(ls $$cache/$$package/$$target | head -n 64); do \
				cp $$cache/$$package/$$target/$$input $$dir/testdata/fuzz/$$target/; \
			done; \
		done; \
	done

.PHONY: clean
clean: ## remove what was built here (the cache folder of e2e stays)
	rm -rf bin .run

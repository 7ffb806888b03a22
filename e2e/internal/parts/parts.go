// Package parts builds the real programs that the tests run: kube-apiserver,
// etcd, etcdctl and toxiproxy from the module in ../../parts, Vault from the one
// in ../../parts/vault, and our own daemon.
//
// The first builds of Vault and kube-apiserver take some minutes, so each program
// is built once into a cache folder and used from there by every later run, of
// any test.
package parts

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// CacheEnv names the environment variable that moves the cache folder, which is
// kube-kek/parts in the user's cache folder otherwise.
const CacheEnv = "KUBE_KEK_CACHE"

// A Part is a program that the tests run.
type Part string

// The parts. All but the daemon change only with the go.mod of their module.
const (
	Vault     Part = "vault"
	APIServer Part = "kube-apiserver"
	Etcd      Part = "etcd"
	Etcdctl   Part = "etcdctl"
	Toxiproxy Part = "toxiproxy-server"
	Daemon    Part = "kube-kek"
)

// All lists the parts, the slowest to build first.
var All = []Part{Vault, APIServer, Etcd, Etcdctl, Toxiproxy, Daemon}

var packages = map[Part]string{
	Vault:     "github.com/hashicorp/vault",
	APIServer: "k8s.io/kubernetes/cmd/kube-apiserver",
	Etcd:      "go.etcd.io/etcd/server/v3",
	Etcdctl:   "go.etcd.io/etcd/etcdctl/v3",
	Toxiproxy: "github.com/Shopify/toxiproxy/v2/cmd/server",
	Daemon:    "./cmd/kube-kek",
}

const e2eModule = "github.com/kube-kek/kube-kek/e2e"

// Path returns where the program is, having built it if need be. It may be
// called from many tests and processes at once: one builds, the others wait.
func Path(ctx context.Context, p Part) (string, error) {
	e2e, err := output(ctx, ".", "go", "list", "-m", "-f", "{{.Dir}}", e2eModule)
	if err != nil {
		return "", fmt.Errorf("finding the module %s: %w", e2eModule, err)
	}
	switch p {
	case Daemon:
		return buildDaemon(ctx, filepath.Dir(e2e))
	case Vault:
		// In a module of its own: its many dependencies do not go with Kubernetes'.
		return buildPinned(ctx, filepath.Join(e2e, "parts", "vault"), p)
	}
	return buildPinned(ctx, filepath.Join(e2e, "parts"), p)
}

// buildDaemon builds our own daemon each time, for its source changes: go's own
// build cache makes that a matter of a second.
func buildDaemon(ctx context.Context, module string) (string, error) {
	dir, err := cacheDir("daemon", hash(module))
	if err != nil {
		return "", err
	}
	return dir.build(ctx, Daemon, module, "-s -w")
}

func buildPinned(ctx context.Context, module string, p Part) (string, error) {
	gomod, err := os.ReadFile(filepath.Join(module, "go.mod"))
	if err != nil {
		return "", err
	}
	gosum, err := os.ReadFile(filepath.Join(module, "go.sum"))
	if err != nil {
		return "", err
	}
	toolchain, err := output(ctx, module, "go", "env", "GOVERSION", "GOOS", "GOARCH")
	if err != nil {
		return "", err
	}
	ldflags := "-s -w"
	if p == APIServer {
		// Without it the apiserver takes itself for v0.0.0 and its feature gates
		// for those of a version that never was.
		version, err := output(ctx, module, "go", "list", "-m", "-f", "{{.Version}}", "k8s.io/kubernetes")
		if err != nil {
			return "", err
		}
		ldflags += " -X k8s.io/component-base/version.gitVersion=" + version
	}
	dir, err := cacheDir("parts", hash(string(gomod), string(gosum), toolchain, ldflags))
	if err != nil {
		return "", err
	}
	if path := dir.path(p); exists(path) {
		return path, nil
	}
	return dir.build(ctx, p, module, ldflags)
}

// A cache is a folder of programs built from the same inputs.
type cache string

func cacheDir(kind, inputs string) (cache, error) {
	root := os.Getenv(CacheEnv)
	if root == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return "", fmt.Errorf("finding a cache folder (set %s to name one): %w", CacheEnv, err)
		}
		root = filepath.Join(user, "kube-kek")
	}
	root, err := filepath.Abs(root)
	if err != nil {
		return "", err
	}
	dir := filepath.Join(root, kind, inputs)
	return cache(dir), os.MkdirAll(dir, 0o755)
}

func (c cache) path(p Part) string { return filepath.Join(string(c), string(p)) }

// build builds p under a lock and puts it in place by a rename, so that a
// program that is running meanwhile keeps its file and a build that is broken
// off leaves nothing that looks finished.
func (c cache) build(ctx context.Context, p Part, module, ldflags string) (string, error) {
	unlock, err := lock(c.path(p) + ".lock")
	if err != nil {
		return "", err
	}
	defer unlock()
	if p != Daemon && exists(c.path(p)) {
		return c.path(p), nil // built while we waited for the lock
	}
	switch p {
	case Daemon:
	case APIServer, Vault:
		fmt.Fprintf(os.Stderr, "building %s, some minutes the first time\n", p)
	default:
		fmt.Fprintf(os.Stderr, "building %s\n", p)
	}
	start := time.Now()
	tmp := fmt.Sprintf("%s.%d.tmp", c.path(p), os.Getpid())
	defer os.Remove(tmp)
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", ldflags, "-o", tmp, packages[p])
	cmd.Dir = module
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	cmd.Stderr = os.Stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("building %s in %s: %w", p, module, err)
	}
	if p != Daemon {
		fmt.Fprintf(os.Stderr, "built %s in %s\n", p, time.Since(start).Round(time.Second))
	}
	return c.path(p), os.Rename(tmp, c.path(p))
}

// lock waits for the lock file. The kernel gives it up when its holder ends,
// however that ends.
func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("locking %s: %w", path, err)
	}
	return func() { f.Close() }, nil
}

func hash(inputs ...string) string {
	h := sha256.New()
	for _, s := range inputs {
		fmt.Fprintf(h, "%d:%s", len(s), s)
	}
	return hex.EncodeToString(h.Sum(nil))[:16]
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func output(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	return strings.TrimSpace(string(out)), err
}

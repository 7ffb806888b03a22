package kektest

import (
	"fmt"
	"slices"
	"time"

	"github.com/kube-kek/kube-kek/kek"
)

var everyOp = [...]kek.Op{kek.OpCurrent, kek.OpWrap, kek.OpUnwrap, kek.OpIdentity}

// orEvery is what a method that takes operations means by none: all of them.
func orEvery(ops []kek.Op) []kek.Op {
	if len(ops) == 0 {
		return everyOp[:]
	}
	return ops
}

// Rotate makes a new version, makes it current and returns its name.
func (h *home) Rotate() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	v := newVersion(h.versionName(len(h.versions) + 1))
	h.versions = append(h.versions, v)
	h.current = len(h.versions) - 1
	return v.name
}

// SetCurrent makes an existing version current again, as an eventually
// consistent home does that flips back. It panics if there is no such version.
func (h *home) SetCurrent(version string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.current = h.index(version)
}

// WrapLags makes the next n Wraps use the version before the current one, as an
// eventually consistent home does after a rotation.
func (h *home) WrapLags(n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lagging = n
}

// MangleWraps makes the next n Wraps hold other bytes than they were given:
// their Unwrap succeeds and returns the wrong key.
func (h *home) MangleWraps(n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.mangled = n
}

// Fail makes the operations (none named: all) fail with kind until [Provider.Heal].
func (h *home) Fail(kind kek.Kind, ops ...kek.Op) { h.FailTimes(-1, kind, ops...) }

// FailTimes makes the next n calls of each of the operations (none named: all)
// fail with kind.
func (h *home) FailTimes(n int, kind kek.Kind, ops ...kek.Op) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, op := range orEvery(ops) {
		h.faults[op] = injected{kind, n}
	}
}

// SetRetryAfter sets the RetryAfter of injected Throttled errors; 0, as at the
// start, is a home that does not say.
func (h *home) SetRetryAfter(d time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.retryAfter = d
}

// Heal ends what Fail, FailTimes and SetDelay did to the operations (none named: all).
func (h *home) Heal(ops ...kek.Op) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, op := range orEvery(ops) {
		delete(h.faults, op)
		delete(h.delays, op)
	}
}

// SetDelay makes each call of the operations (none named: all) take d, or until
// its context ends, which is Unavailable.
func (h *home) SetDelay(d time.Duration, ops ...kek.Op) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, op := range orEvery(ops) {
		h.delays[op] = d
	}
}

// Hang makes calls of the operations (none named: all) wait until release is
// called or their context ends. It must be released before it is called again.
func (h *home) Hang(ops ...kek.Op) (release func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	gate := make(chan struct{})
	for _, op := range orEvery(ops) {
		h.hangs[op] = gate
	}
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		for _, op := range orEvery(ops) {
			delete(h.hangs, op)
		}
		close(gate)
	}
}

// Disable disables the versions, or the whole key if none is named.
func (h *home) Disable(versions ...string) {
	h.set(versions, func(v *version) { v.disabled = true }, func() { h.disabled = true })
}

// Enable undoes Disable: of the versions, or of the whole key if none is named.
func (h *home) Enable(versions ...string) {
	h.set(versions, func(v *version) { v.disabled = false }, func() { h.disabled = false })
}

// Remove makes the versions, or the whole key if none is named, not found.
func (h *home) Remove(versions ...string) {
	h.set(versions, func(v *version) { v.removed = true }, func() { h.removed = true })
}

// Restore undoes Remove: of the versions, or of the whole key if none is named.
func (h *home) Restore(versions ...string) {
	h.set(versions, func(v *version) { v.removed = false }, func() { h.removed = false })
}

func (h *home) set(versions []string, one func(*version), whole func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, name := range versions {
		one(&h.versions[h.index(name)])
	}
	if len(versions) == 0 {
		whole()
	}
}

// index is called with mu held.
func (h *home) index(name string) int {
	i := slices.IndexFunc(h.versions, func(v version) bool { return v.name == name })
	if i < 0 {
		panic(fmt.Sprintf("kektest: the key %s has no version %q", h.id, name))
	}
	return i
}

// Calls returns how many calls of the operations (none named: all) were made,
// failed ones too.
func (h *home) Calls(ops ...kek.Op) int {
	n := 0
	for _, c := range h.Log() {
		if slices.Contains(orEvery(ops), c.Op) {
			n++
		}
	}
	return n
}

// Log returns every call so far, in order.
func (h *home) Log() []Call {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.calls)
}

// Closed returns how often Close was called.
func (h *home) Closed() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.closed
}

package kektest

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/kube-kek/kube-kek/kek"
)

// check is one promise of [kek.Provider]. It leaves the home as it found it, but
// for versions added. A check looks at one thing only, so that the suite's own
// test can tell which fault it is there to find.
type check struct {
	name string
	run  func(testing.TB, Harness)
}

func checks() []check {
	all := []check{
		{"a key of 1, 16, 32 and 64 bytes comes back", roundTrip},
		{"a key of 0 bytes is Invalid", emptyKey},
		{"two wraps of one key differ", randomised},
		{"a damaged ciphertext is Corrupt or Invalid", damaged},
		{"Current names what Wrap used", current},
		{"the name of a key fits into a key ID", keyName},
		{"a rotation moves Current and old wraps open", rotation},
		{"a version cut to 32 bytes opens", cutVersion},
		{"another KEK cannot unwrap", otherKEK},
		{"a wrap that names another key is Invalid", pinned},
		{"another cluster cannot unwrap", otherCluster},
		{"a context that ends ends the call", ended},
		{"64 callers at a time", concurrent},
		{"arguments are neither modified nor kept", arguments},
		{"errors are a kek.Error with the operation", typed},
		{"errors hold no plaintext", silent},
		{"Facts tell of the last Current", facts},
		{"Close may be called twice", closeTwice},
	}
	for _, f := range (Harness{}).faults() {
		all = append(all, check{
			f.what + " is " + f.kind.String() + ", and then it is over",
			func(t testing.TB, h Harness) { faulted(t, h, f.field) },
		})
	}
	return all
}

func roundTrip(t testing.TB, h Harness) {
	p := h.New(t)
	for _, n := range []int{1, 16, 32, kek.MaxPlaintext} {
		key := newKey(n)
		got, err := unwrap(t, p, wrap(t, p, key))
		if err != nil {
			t.Errorf("%d bytes: Unwrap: %v", n, err)
		} else if !bytes.Equal(got, key) {
			t.Errorf("%d bytes: Unwrap returned other bytes than Wrap was given", n)
		}
	}
}

func emptyKey(t testing.TB, h Harness) {
	p := h.New(t)
	for _, key := range [][]byte{nil, {}} {
		if _, err := p.Wrap(t.Context(), key); kek.KindOf(err) != kek.Invalid || err == nil {
			t.Errorf("Wrap of no bytes: %v, want %v", err, kek.Invalid)
		}
	}
}

func randomised(t testing.TB, h Harness) {
	p := h.New(t)
	key := newKey(32)
	if bytes.Equal(wrap(t, p, key).Ciphertext, wrap(t, p, key).Ciphertext) {
		t.Errorf("two wraps of one key have one ciphertext")
	}
}

func damaged(t testing.TB, h Harness) {
	p := h.New(t)
	w := wrap(t, p, newKey(32))
	try := func(what string, ciphertext []byte) {
		_, err := unwrap(t, p, kek.Wrapped{Key: w.Key, Ciphertext: ciphertext})
		switch kind := kek.KindOf(err); {
		case err == nil:
			t.Errorf("%s: Unwrap accepted it", what)
		case kind != kek.Corrupt && kind != kek.Invalid:
			t.Errorf("%s: Unwrap: %v, want %v or %v", what, err, kek.Corrupt, kek.Invalid)
		}
	}
	for i := range w.Ciphertext {
		flipped := bytes.Clone(w.Ciphertext)
		flipped[i] ^= 1 << (i % 8)
		try(fmt.Sprintf("bit %d of byte %d flipped", i%8, i), flipped)
		try(fmt.Sprintf("cut to %d bytes", i), bytes.Clone(w.Ciphertext[:i]))
	}
	try("no ciphertext", nil)
	try("a byte more", append(bytes.Clone(w.Ciphertext), 0))
}

func current(t testing.TB, h Harness) {
	p := h.New(t)
	ref, err := p.Current(t.Context())
	if err != nil {
		t.Fatalf("Current: %v", err)
	}
	if w := wrap(t, p, newKey(32)); w.Key != ref {
		t.Errorf("Current says %v and Wrap used %v", ref, w.Key)
	}
}

// keyName holds a KeyRef to the form of a key ID, "scheme:ID@version+…~…", which
// is cut at its last "@".
func keyName(t testing.TB, h Harness) {
	ref, err := h.New(t).Current(t.Context())
	if err != nil {
		t.Fatalf("Current: %v", err)
	}
	for _, s := range []string{ref.ID, ref.Version} {
		if s == "" || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' }) {
			t.Errorf("Current: %q: ID and version must be printable ASCII without spaces, and not empty", ref)
		}
	}
	if strings.ContainsAny(ref.Version, "@+~") {
		t.Errorf("Current: the version %q holds one of @ + ~", ref.Version)
	}
}

func rotation(t testing.TB, h Harness) {
	if h.lacks(t, "Rotate") {
		return
	}
	p := h.New(t)
	key := newKey(32)
	before, old := mustCurrent(t, p), wrap(t, p, key)
	h.Rotate(t)
	after, young := mustCurrent(t, p), wrap(t, p, key)
	if after.ID != before.ID || after.Version == before.Version {
		t.Errorf("Current is %v after a rotation and was %v before", after, before)
	}
	if young.Key.Version == old.Key.Version {
		t.Errorf("Wrap used version %s after the rotation and before", old.Key.Version)
	}
	for name, p := range map[string]kek.Provider{"this provider": p, "a new provider": h.New(t)} {
		for _, w := range []kek.Wrapped{old, young} {
			if got, err := unwrap(t, p, w); err != nil || !bytes.Equal(got, key) {
				t.Errorf("%s does not open the wrap of %v: %v", name, w.Key, err)
			}
		}
	}
}

// maxVersion is the length in bytes to which key IDs cut a version.
const maxVersion = 32

func cutVersion(t testing.TB, h Harness) {
	p := h.New(t)
	key := newKey(32)
	w := wrap(t, p, key)
	if len(w.Key.Version) <= maxVersion {
		t.Logf("versions are short here: %s", w.Key.Version)
		return
	}
	w.Key.Version = w.Key.Version[:maxVersion]
	if got, err := unwrap(t, p, w); err != nil || !bytes.Equal(got, key) {
		t.Errorf("Unwrap with the version cut to %s: %v", w.Key.Version, err)
	}
}

func otherKEK(t testing.TB, h Harness) {
	w := wrap(t, h.New(t), newKey(32))
	other := h.Other(t)
	w.Key = mustCurrent(t, other)
	_, err := unwrap(t, other, w)
	if kind := kek.KindOf(err); err == nil || kind != kek.Corrupt && kind != kek.Invalid {
		t.Errorf("Unwrap by another KEK: %v, want %v or %v", err, kek.Corrupt, kek.Invalid)
	}
}

func pinned(t testing.TB, h Harness) {
	p := h.New(t)
	w := wrap(t, p, newKey(32))
	id := w.Key.ID
	for _, wrong := range []string{mustCurrent(t, h.Other(t)).ID, "", id + "x", id[:len(id)-1]} {
		w.Key.ID = wrong
		if _, err := unwrap(t, p, w); err == nil || kek.KindOf(err) != kek.Invalid {
			t.Errorf("Unwrap of a wrap that names the key %q: %v, want %v", wrong, err, kek.Invalid)
		}
	}
}

func otherCluster(t testing.TB, h Harness) {
	if h.lacks(t, "Foreign") {
		return
	}
	w := wrap(t, h.New(t), newKey(32))
	_, err := unwrap(t, h.Foreign(t), w)
	if kind := kek.KindOf(err); err == nil || kind != kek.Corrupt && kind != kek.Invalid && kind != kek.Denied {
		t.Errorf("Unwrap with another cluster's binding: %v, want %v, %v or %v", err, kek.Corrupt, kek.Invalid, kek.Denied)
	}
}

func concurrent(t testing.TB, h Harness) {
	p := h.New(t)
	ref := mustCurrent(t, p)
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			key := newKey(32)
			w, err := p.Wrap(t.Context(), bytes.Clone(key))
			if err != nil {
				t.Errorf("Wrap: %v", err)
				return
			}
			if got, err := p.Unwrap(t.Context(), w); err != nil || !bytes.Equal(got, key) {
				t.Errorf("Unwrap does not return what this caller wrapped: %v", err)
			}
			if got, err := p.Current(t.Context()); err != nil || got != ref {
				t.Errorf("Current: %v, %v; want %v", got, err, ref)
			}
		})
	}
	wg.Wait()
}

func arguments(t testing.TB, h Harness) {
	p := h.New(t)
	key := newKey(32)

	// Behind the slices lies spare room that a careless append would write to.
	plain := append(bytes.Clone(key), newKey(32)...)
	before := bytes.Clone(plain)
	w, err := p.Wrap(t.Context(), plain[:32])
	if err != nil {
		t.Fatalf("Wrap: %v", err)
	}
	if !bytes.Equal(plain, before) {
		t.Errorf("Wrap modified the plaintext that it was given, or what lies behind it")
	}
	clear(plain)

	room := append(bytes.Clone(w.Ciphertext), newKey(64)...)
	before = bytes.Clone(room)
	for range 2 {
		got, err := p.Unwrap(t.Context(), kek.Wrapped{Key: w.Key, Ciphertext: room[:len(w.Ciphertext)]})
		if err != nil || !bytes.Equal(got, key) {
			t.Errorf("Unwrap does not return the key once its caller has cleared what it had before: %v", err)
		}
		if !bytes.Equal(room, before) {
			t.Errorf("Unwrap modified the ciphertext that it was given, or what lies behind it")
			copy(room, before)
		}
		clear(got)
	}
}

func facts(t testing.TB, h Harness) {
	p := h.New(t)
	informer, ok := kek.As[kek.Informer](p)
	if !ok {
		t.Logf("this provider tells no Facts")
		return
	}
	ref := mustCurrent(t, p)
	if f := informer.Facts(); f.Key != ref || f.State != kek.StateEnabled {
		t.Errorf("Facts tell of %v, state %q; Current was %v, enabled", f.Key, f.State, ref)
	}
	if h.lacks(t, "Disable") {
		return
	}
	defer h.Disable(t)()
	if ref, err := p.Current(t.Context()); err == nil {
		t.Errorf("Current of a disabled key: %v", ref)
	}
	if f := informer.Facts(); f.State == kek.StateEnabled {
		t.Errorf("Facts call a disabled key enabled")
	}
}

func closeTwice(t testing.TB, h Harness) {
	p := h.New(t)
	w := wrap(t, p, newKey(32))
	for range 2 {
		if err := p.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
	// Calls may fail now and must not panic.
	for op, err := range call(t.Context(), p, newKey(32), w) {
		if p, ok := err.(*panicked); ok {
			t.Errorf("%s after Close: %v", op, p)
		}
	}
}

func newKey(n int) []byte {
	key := make([]byte, n)
	rand.Read(key)
	return key
}

func mustCurrent(t testing.TB, p kek.Provider) kek.KeyRef {
	t.Helper()
	ref, err := p.Current(t.Context())
	if err != nil {
		t.Fatalf("Current: %v", err)
	}
	return ref
}

// wrap and unwrap give the provider copies: what it does to its arguments is
// the business of one check.
func wrap(t testing.TB, p kek.Provider, key []byte) kek.Wrapped {
	t.Helper()
	w, err := p.Wrap(t.Context(), bytes.Clone(key))
	if err != nil {
		t.Fatalf("Wrap: %v", err)
	}
	w.Ciphertext = bytes.Clone(w.Ciphertext)
	return w
}

func unwrap(t testing.TB, p kek.Provider, w kek.Wrapped) (key []byte, err error) {
	t.Helper()
	err = guard(func() error {
		w.Ciphertext = bytes.Clone(w.Ciphertext)
		key, err = p.Unwrap(t.Context(), w)
		return err
	})
	return bytes.Clone(key), err
}

package kektest

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/kube-kek/kube-kek/kek"
)

// Config describes a [Provider].
type Config struct {
	// ID is the key's KeyRef.ID; "fake" if empty.
	ID string

	// Binding is bound to each wrap as additional authenticated data.
	Binding kek.Binding

	// VersionName gives the name of the n-th version, counted from 1. Nil gives
	// "1", "2", ….
	VersionName func(n int) string
}

// Provider is a KEK in memory with faults to inject: AES-256-GCM, real bindings,
// versions that rotate. It starts no goroutine and waits only on its context,
// on channels and on time.Sleep's kin, so that it may be used in a bubble of
// testing/synctest. It implements [kek.Provider], [kek.Informer] and
// [kek.Identifier].
//
// The methods that rotate, fail and count may be called at any time, also while
// calls are under way.
type Provider struct {
	*home
	binding kek.Binding
}

// home is what all providers of one KEK share.
type home struct {
	id          string
	versionName func(int) string

	mu         sync.Mutex
	versions   []version
	current    int // index of the version that writes use
	disabled   bool
	removed    bool
	faults     map[kek.Op]injected
	delays     map[kek.Op]time.Duration
	hangs      map[kek.Op]chan struct{}
	retryAfter time.Duration
	lagging    int // Wraps still to come that use the version before the current one
	mangled    int // Wraps still to come that hold other bytes than they were given
	calls      []Call
	closed     int
	facts      kek.Facts
}

type version struct {
	name              string
	aead              cipher.AEAD
	disabled, removed bool
}

type injected struct {
	kind  kek.Kind
	times int // calls still to fail; below 0 there is no end
}

// Call is one call that a [Provider] received.
type Call struct {
	Op      kek.Op
	Purpose kek.Purpose
	Time    time.Time // when it began
}

// New returns a provider of a new KEK with one version.
func New(c Config) *Provider {
	h := &home{
		id: c.ID, versionName: c.VersionName,
		faults: map[kek.Op]injected{}, delays: map[kek.Op]time.Duration{}, hangs: map[kek.Op]chan struct{}{},
	}
	if h.id == "" {
		h.id = "fake"
	}
	if h.versionName == nil {
		h.versionName = strconv.Itoa
	}
	h.Rotate()
	return &Provider{h, c.Binding}
}

// Bound returns a provider of the same KEK with another binding. Versions,
// faults and counts are shared.
func (p *Provider) Bound(b kek.Binding) *Provider { return &Provider{p.home, b} }

// Current implements [kek.Provider].
func (p *Provider) Current(ctx context.Context) (kek.KeyRef, error) {
	if err := p.begin(ctx, kek.OpCurrent); err != nil {
		return kek.KeyRef{}, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	v := p.versions[p.current]
	if err := p.usable(kek.OpCurrent, v); err != nil {
		if kek.KindOf(err) == kek.KeyDisabled {
			p.facts = kek.Facts{Key: p.ref(v), State: kek.StateDisabled}
		}
		return kek.KeyRef{}, err
	}
	p.facts = kek.Facts{Key: p.ref(v), State: kek.StateEnabled}
	return p.ref(v), nil
}

// Wrap implements [kek.Provider].
func (p *Provider) Wrap(ctx context.Context, plaintext []byte) (kek.Wrapped, error) {
	if err := p.begin(ctx, kek.OpWrap); err != nil {
		return kek.Wrapped{}, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	i := p.current
	if p.lagging > 0 && i > 0 {
		p.lagging--
		i--
	}
	v := p.versions[i]
	if err := p.usable(kek.OpWrap, v); err != nil {
		return kek.Wrapped{}, err
	}
	if n := len(plaintext); n < 1 || n > kek.MaxPlaintext {
		return kek.Wrapped{}, p.err(kek.OpWrap, v, kek.Invalid, fmt.Sprintf("a key of %d bytes, want 1 to %d", n, kek.MaxPlaintext))
	}
	if p.mangled > 0 {
		p.mangled--
		plaintext = bytes.Clone(plaintext)
		plaintext[0] ^= 1
	}
	return kek.Wrapped{Key: p.ref(v), Ciphertext: v.aead.Seal(nil, nil, plaintext, p.binding.Bytes())}, nil
}

// Unwrap implements [kek.Provider]. A version of 32 bytes and more may be cut.
func (p *Provider) Unwrap(ctx context.Context, w kek.Wrapped) ([]byte, error) {
	if err := p.begin(ctx, kek.OpUnwrap); err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if w.Key.ID != p.id {
		return nil, p.err(kek.OpUnwrap, version{}, kek.Invalid, "the wrap names another key")
	}
	i := slices.IndexFunc(p.versions, func(v version) bool {
		return v.name == w.Key.Version || len(w.Key.Version) >= 32 && strings.HasPrefix(v.name, w.Key.Version)
	})
	if i < 0 {
		return nil, p.err(kek.OpUnwrap, version{name: w.Key.Version}, kek.KeyNotFound, "no such version")
	}
	v := p.versions[i]
	if err := p.usable(kek.OpUnwrap, v); err != nil {
		return nil, err
	}
	plaintext, err := v.aead.Open(nil, nil, w.Ciphertext, p.binding.Bytes())
	if err != nil {
		return nil, p.err(kek.OpUnwrap, v, kek.Corrupt, "the ciphertext does not authenticate")
	}
	return plaintext, nil
}

// Identity implements [kek.Identifier].
func (p *Provider) Identity(ctx context.Context) (string, error) {
	if err := p.begin(ctx, kek.OpIdentity); err != nil {
		return "", err
	}
	return "fake:tester", nil
}

// Facts implements [kek.Informer].
func (p *Provider) Facts() kek.Facts {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.facts
}

// Close implements [kek.Provider]. It only counts: see [Provider.Closed].
func (p *Provider) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed++
	return nil
}

// begin notes the call, waits as it was told to and fails if it was told to.
func (p *Provider) begin(ctx context.Context, op kek.Op) error {
	p.mu.Lock()
	p.calls = append(p.calls, Call{op, kek.PurposeOf(ctx), time.Now()})
	kek.RecordCall(ctx, "fake-"+strconv.Itoa(len(p.calls)))
	delay, hang := p.delays[op], p.hangs[op]
	p.mu.Unlock()

	if delay > 0 {
		timer := time.NewTimer(delay)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
	}
	if hang != nil {
		select {
		case <-hang:
		case <-ctx.Done():
		}
	}
	if err := ctx.Err(); err != nil {
		return &kek.Error{Op: op, Key: kek.KeyRef{ID: p.id}, Kind: kek.Unavailable, Err: err}
	}

	p.mu.Lock()
	defer p.mu.Unlock()
	f, ok := p.faults[op]
	if !ok || f.times == 0 {
		return nil
	}
	f.times--
	p.faults[op] = f
	e := &kek.Error{Op: op, Key: kek.KeyRef{ID: p.id}, Kind: f.kind, Err: errors.New("injected")}
	if f.kind == kek.Throttled {
		e.RetryAfter = p.retryAfter
	}
	return e
}

// usable is called with mu held.
func (h *home) usable(op kek.Op, v version) error {
	switch {
	case h.removed || v.removed:
		return h.err(op, v, kek.KeyNotFound, "removed")
	case h.disabled || v.disabled:
		return h.err(op, v, kek.KeyDisabled, "disabled")
	}
	return nil
}

func (h *home) ref(v version) kek.KeyRef { return kek.KeyRef{ID: h.id, Version: v.name} }

func (h *home) err(op kek.Op, v version, kind kek.Kind, why string) error {
	return &kek.Error{Op: op, Key: h.ref(v), Kind: kind, Err: errors.New(why)}
}

func newVersion(name string) version {
	key := make([]byte, 32)
	rand.Read(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err) // 32 bytes are a key
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic(err) // AES has GCM's block size
	}
	return version{name: name, aead: aead}
}

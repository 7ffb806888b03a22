// Package localkek keeps the ring of local KEKs: 32-byte keys in memory that
// seal the DEK seeds of kube-apiserver and are themselves wrapped by a remote
// KEK. It is why the control plane outlives its KMS: sealing asks nobody, and
// opening asks the KMS once per local KEK and not once per seed.
//
// Its trade is the lease. A local KEK may be used while its KEK's home has been
// heard to agree within the lease (12 hours unless set); the ring asks every few
// minutes. When the home does not answer, local KEKs work until the lease ends.
// When it says no, they are dropped at once.
//
// With Lease 0 and MaxUses 1, the strict mode, each seed has a local KEK of its
// own and each Seal and Open asks the KMS; nothing else about the code differs.
//
// Local KEKs live in this process's memory only. What is written of them, as the
// annotation of a record or in a [Store], is wrapped.
package localkek

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	aeadsubtle "github.com/tink-crypto/tink-go/v2/aead/subtle"
	"golang.org/x/sync/singleflight"

	"github.com/kube-kek/kube-kek/kek"
)

// keySize is the size of a local KEK in bytes: AES-256.
const keySize = 32

// Home is one KEK that the ring uses.
type Home struct {
	Scheme string // of its URI, e.g. "awskms"; the first part of its key IDs

	// ID is the KeyRef.ID where the configuration tells it, "" where only the
	// home can (an AWS alias). Until it is known, records of the scheme cannot
	// be told apart and opening them is Unavailable.
	ID string

	// Provider is the home, with its decorators. The ring closes it.
	Provider kek.Provider

	// Epoch goes into the key IDs of the current home; see [KeyID].
	Epoch int
}

// Config is what a Ring is made from. Start from [DefaultConfig].
type Config struct {
	// Cluster is bound into every seal, 1 to 255 bytes. Records of a cluster of
	// another name cannot be opened.
	Cluster string

	// Current is the KEK that Seal uses; Previous are KEKs that only Open uses.
	Current  Home
	Previous []Home

	// Lease is how long local KEKs may be used since their KEK's home last
	// agreed. 0 asks it at each use and keeps no local KEK.
	Lease time.Duration

	// Renew is how often the home is asked, ±10 %. Each time costs one Current
	// and one Unwrap for each key version held.
	Renew time.Duration

	// MaxUses is how many seeds one local KEK seals. Its nonces are random: at
	// the default of 2^24 two of them agree with a chance of 2^-49.
	MaxUses uint64

	// CacheSize bounds the local KEKs in memory; the least recently used one
	// makes way. Each is about 1 KiB.
	CacheSize int

	// CallTimeout bounds Seal and Open with all that they wait for, and each call
	// of the background to a home, with its retries.
	CallTimeout time.Duration

	// Store keeps, without a secret in it, which local KEKs are in use, so that a
	// restarted ring opens them before an outage can come. nil keeps nothing.
	Store Store

	// Logger hears of what an operator should know. nil discards.
	Logger *slog.Logger
}

// DefaultConfig returns the defaults, without a cluster and homes.
func DefaultConfig() Config {
	return Config{
		Lease:       12 * time.Hour,
		Renew:       5 * time.Minute,
		MaxUses:     1 << 24,
		CacheSize:   4096,
		CallTimeout: 2500 * time.Millisecond,
	}
}

// Ring holds local KEKs. All methods may be called concurrently.
type Ring struct {
	cfg   Config
	log   *slog.Logger
	homes []*home // the current one first

	current atomic.Pointer[localKEK]        // what Seal uses; nil while there is none
	cache   *lru.Cache[identity, *localKEK] // what Open has used, by additional data
	known   *lru.Cache[identity, Sealed]    // records under local KEKs that are or were held
	flight  singleflight.Group              // unwraps under way, by identity
	making  chan struct{}                   // held by the one who makes a local KEK
	kick    chan struct{}                   // asks for a renewal before its time
	learnt  chan struct{}                   // something new is known
	ready   chan struct{}                   // there is a current local KEK again

	mu        sync.Mutex
	why       error                  // why there is no current local KEK
	versions  map[versionID]*version // those that local KEKs in memory belong to
	left      map[string]bool        // key IDs that were current and are no longer
	rotations uint64
}

// home is a Home and what is known of it. mu guards what changes: the ID, which
// may be learnt, and the fields below it.
type home struct {
	Home
	mu      sync.Mutex
	lastRef kek.KeyRef
	lastErr error
	lastTry time.Time
	notes   string // what was logged of its Facts
}

// New returns a ring that asks nobody until [Ring.Run]. All mistakes in c are
// reported at once.
func New(c Config) (*Ring, error) {
	var problems []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			problems = append(problems, fmt.Errorf(format, args...))
		}
	}
	check(len(c.Cluster) >= 1 && len(c.Cluster) <= 255, "cluster of %d bytes, not 1 to 255", len(c.Cluster))
	check(c.Lease >= 0, "negative lease")
	check(c.Renew > 0, "renew must be more than 0")
	check(c.Lease == 0 || c.Renew <= c.Lease/2, "renew (%s) must be at most half of the lease (%s)", c.Renew, c.Lease)
	check(c.MaxUses >= 1 && c.MaxUses <= 1<<32, "maxUses %d, not 1 to 2^32", c.MaxUses)
	check(c.CacheSize >= 1, "cache size %d, not 1 or more", c.CacheSize)
	check(c.CallTimeout > 0, "call timeout must be more than 0")
	check(c.Current.Epoch >= 0 && c.Current.Epoch <= MaxEpoch, "epoch %d, not 0 to %d", c.Current.Epoch, MaxEpoch)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	r := &Ring{
		cfg: c, log: c.Logger,
		making:   make(chan struct{}, 1),
		kick:     make(chan struct{}, 1),
		learnt:   make(chan struct{}, 1),
		ready:    make(chan struct{}, 1),
		versions: map[versionID]*version{},
		left:     map[string]bool{},
		why:      fmt.Errorf("no word yet from the home of the KEK: %w", kek.Unavailable),
	}
	for _, h := range append([]Home{c.Current}, c.Previous...) {
		check(h.Provider != nil, "home %s has no provider", h.Scheme)
		check(schemePattern.MatchString(h.Scheme), "scheme %q of a home", h.Scheme)
		r.homes = append(r.homes, &home{Home: h})
	}
	if len(problems) > 0 {
		return nil, fmt.Errorf("ring of local KEKs: %w", errors.Join(problems...))
	}
	r.cache, _ = lru.New[identity, *localKEK](c.CacheSize) // its only error is a size of 0
	r.known, _ = lru.New[identity, Sealed](c.CacheSize)
	return r, nil
}

// strict is the mode in which no local KEK is kept.
func (r *Ring) strict() bool { return r.cfg.Lease == 0 }

// localKEK is one key of the ring, or in strict mode the memory of one: sealer
// is nil there, and the key is asked for again at each use.
type localKEK struct {
	id         identity
	keyID      string
	version    *version
	wrapped    kek.Wrapped
	annotation []byte
	aad        []byte
	sealer     aead
	uses       atomic.Uint64
}

// take counts one use, unless the key is used up.
func (k *localKEK) take(limit uint64) bool {
	for {
		n := k.uses.Load()
		if n >= limit {
			return false
		}
		if k.uses.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// KeyID returns the key ID that Seal uses now: KMS v2's Status. It asks nobody.
// The error says why there is no usable local KEK; its Kind is that of what the
// home last said.
func (r *Ring) KeyID() (string, error) {
	k, err := r.usable()
	if err != nil {
		return "", err
	}
	return k.keyID, nil
}

// usable returns the current local KEK if its lease holds.
func (r *Ring) usable() (*localKEK, error) {
	k := r.current.Load()
	if k == nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		return nil, fmt.Errorf("no local KEK is ready: %w", r.why)
	}
	if err := k.version.usable(r.cfg.Lease); err != nil {
		return nil, err
	}
	return k, nil
}

// Seal encrypts a seed of 1 to [MaxSeed] bytes under the current local KEK. It
// asks the KMS only where the ring is strict or the local KEK is used up.
func (r *Ring) Seal(ctx context.Context, seed []byte) (Sealed, error) {
	if len(seed) < 1 || len(seed) > MaxSeed {
		return Sealed{}, fmt.Errorf("sealing a seed of %d bytes, not 1 to %d: %w", len(seed), MaxSeed, kek.Invalid)
	}
	k, err := r.take(ctx)
	if err != nil {
		return Sealed{}, fmt.Errorf("sealing a seed: %w", err)
	}
	ciphertext, err := sealSeed(k.sealer, seed, k.aad)
	if err != nil {
		return Sealed{}, err
	}
	return Sealed{
		KeyID:       k.keyID,
		Ciphertext:  ciphertext,
		Annotations: map[string][]byte{AnnotationName: k.annotation},
	}, nil
}

// take returns the current local KEK with one use of it counted.
func (r *Ring) take(ctx context.Context) (*localKEK, error) {
	k, err := r.usable()
	if err != nil {
		return nil, err
	}
	if !k.take(r.cfg.MaxUses) {
		return r.replace(ctx)
	}
	if r.strict() {
		return r.fetch(ctx, k, nil)
	}
	return k, nil
}

// replace returns a new current local KEK, with one use counted, where the old
// one is used up.
func (r *Ring) replace(ctx context.Context) (*localKEK, error) {
	ctx, cancel := r.bounded(ctx)
	defer cancel()
	if r.cfg.MaxUses == 1 {
		return r.make(ctx, 1) // nobody can share it, so nobody waits for another's
	}
	if err := r.lockMaking(ctx); err != nil {
		return nil, err
	}
	defer r.unlockMaking()
	k, err := r.usable()
	if err != nil {
		return nil, err
	}
	if r.strict() || !k.take(r.cfg.MaxUses) { // another caller may have replaced it meanwhile
		return r.make(ctx, 1)
	}
	return k, nil
}

func (r *Ring) lockMaking(ctx context.Context) error {
	select {
	case r.making <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for a new local KEK: %w: %w", ctx.Err(), kek.Unavailable)
	}
}

func (r *Ring) unlockMaking() { <-r.making }

// make wraps a new local KEK, unwraps it again to know that it could come back,
// and makes it the current one with so many uses counted. Unless MaxUses is 1 it
// is called with making held.
func (r *Ring) make(ctx context.Context, uses uint64) (*localKEK, error) {
	h := r.homes[0]
	heard := time.Now()
	key := make([]byte, keySize)
	defer clear(key)
	rand.Read(key) // never fails (crypto/rand)

	ctx, cancel := r.bounded(ctx)
	defer cancel()
	w, err := h.Provider.Wrap(ctx, key)
	if err != nil {
		r.askSoon(err)
		return nil, fmt.Errorf("wrapping a new local KEK: %w", err)
	}
	w.Key = cut(w.Key)
	back, err := h.Provider.Unwrap(ctx, w)
	if err != nil {
		r.askSoon(err)
		return nil, fmt.Errorf("unwrapping a new local KEK to prove its wrap: %w", err)
	}
	defer clear(back)
	if subtle.ConstantTimeCompare(key, back) != 1 {
		return nil, fmt.Errorf("unwrapping a new local KEK to prove its wrap under %s: other bytes came back; nothing was sealed under it: %w", w.Key, kek.Corrupt)
	}

	keyID := KeyID{Scheme: h.Scheme, ID: w.Key.ID, Version: w.Key.Version, Epoch: h.Epoch}.String()
	if _, err := ParseKeyID(keyID); err != nil {
		return nil, fmt.Errorf("naming a new local KEK: %w", err)
	}
	annotation, err := encodeAnnotation([]wrap{{Ciphertext: w.Ciphertext}})
	if err != nil {
		return nil, err
	}
	k := newMemory(h, keyID, w, annotation, additionalData(r.cfg.Cluster, keyID, annotation))
	if k.sealer, err = newSealer(key); err != nil {
		return nil, fmt.Errorf("new local KEK under %s: %w", keyID, err)
	}
	k.uses.Store(uses)
	return k, r.install(k, heard)
}

// newMemory returns a local KEK without its key, of a version of its own until
// the ring has agreed to it.
func newMemory(h *home, keyID string, w kek.Wrapped, annotation, aad []byte) *localKEK {
	return &localKEK{
		id: identify(aad), keyID: keyID, version: &version{home: h, keyID: keyID, probe: w},
		wrapped: w, annotation: annotation, aad: aad,
	}
}

// withKey returns a copy of k that holds its key.
func (k *localKEK) withKey(sealer aead) *localKEK {
	return &localKEK{
		id: k.id, keyID: k.keyID, version: k.version,
		wrapped: k.wrapped, annotation: k.annotation, aad: k.aad, sealer: sealer,
	}
}

func newSealer(key []byte) (aead, error) {
	if len(key) != keySize {
		return nil, fmt.Errorf("a local KEK of %d bytes, not %d: %w", len(key), keySize, kek.Corrupt)
	}
	return aeadsubtle.NewAESGCM(key)
}

// install makes k the current local KEK. A key ID that was left is refused: a
// home whose answers come from several places must not make key IDs flip-flop.
func (r *Ring) install(k *localKEK, heard time.Time) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.left[k.keyID] {
		return fmt.Errorf("%s is current at its home again, but was left for a later version and a key ID is never used twice; if this is meant, set another kek.epoch: %w", k.keyID, kek.Invalid)
	}
	old := r.current.Load()
	k.version = r.agreed(k.version, heard)
	if r.strict() {
		memory := k.withKey(nil)
		memory.uses.Store(k.uses.Load())
		r.current.Store(memory)
	} else {
		r.cache.Add(k.id, k)
		r.current.Store(k)
		r.learn(k)
	}
	switch {
	case old == nil:
		signal(r.ready)
		r.log.Info("local KEK is ready", "key_id", k.keyID)
	case old.keyID != k.keyID:
		r.left[old.keyID] = true
		r.rotations++
		r.log.Info("rotation seen: writes use the new key version from now on", "key_id", k.keyID, "left_key_id", old.keyID)
	}
	r.why = nil
	return nil
}

// Close forgets all local KEKs and closes the providers.
func (r *Ring) Close() error {
	r.mu.Lock()
	r.current.Store(nil)
	r.cache.Purge()
	clear(r.versions)
	r.why = fmt.Errorf("the plugin is shutting down: %w", kek.Unavailable)
	r.mu.Unlock()
	var errs []error
	for _, h := range r.homes {
		errs = append(errs, h.Provider.Close())
	}
	return errors.Join(errs...)
}

package localkek

import (
	"context"
	"fmt"
	"time"

	"github.com/kube-kek/kube-kek/kek"
)

// Open decrypts what a ring of this cluster sealed, under any version of a KEK
// that this ring is configured with. It asks the KMS only for a local KEK that
// is not in memory, once however many callers wait for it.
//
// A record that is damaged or foreign is [kek.Corrupt] or [kek.Invalid]; a KEK
// that cannot be had gives its home's Kind.
func (r *Ring) Open(ctx context.Context, s Sealed) ([]byte, error) {
	annotation, err := s.annotation()
	if err != nil {
		return nil, err
	}
	if err := checkCiphertext(s.Ciphertext); err != nil {
		return nil, err
	}
	if err := checkSizes(s.KeyID, annotation); err != nil {
		return nil, err
	}
	// A local KEK is in memory under the hash of what it is bound to, key ID and
	// annotation among it, so what is found was taken apart and checked before.
	aad := additionalData(r.cfg.Cluster, s.KeyID, annotation)
	if k := r.held(identify(aad)); k != nil {
		return r.open(k, s.Ciphertext)
	}

	keyID, err := ParseKeyID(s.KeyID)
	if err != nil {
		return nil, err
	}
	wraps, err := decodeAnnotation(annotation)
	if err != nil {
		return nil, err
	}
	h, err := r.homeOf(keyID)
	if err != nil {
		return nil, err
	}
	wrapped := kek.Wrapped{Key: kek.KeyRef{ID: keyID.ID, Version: keyID.Version}, Ciphertext: ownWrap(wraps)}
	k, err := r.fetch(ctx, newMemory(h, s.KeyID, wrapped, annotation, aad), s.Ciphertext)
	if err != nil {
		return nil, fmt.Errorf("opening a record under %s: %w", s.KeyID, err)
	}
	return r.open(k, s.Ciphertext)
}

func (r *Ring) open(k *localKEK, ciphertext []byte) ([]byte, error) {
	seed, err := openSeed(k.sealer, ciphertext, k.aad)
	if err != nil {
		return nil, fmt.Errorf("opening a record under %s: its ciphertext, key ID or annotation was changed, or it is of a cluster other than %q: %w", k.keyID, r.cfg.Cluster, err)
	}
	return seed, nil
}

// homeOf finds the home that a key ID names.
func (r *Ring) homeOf(k KeyID) (*home, error) {
	for _, h := range r.homes {
		if h.Scheme == k.Scheme && h.knownID() == k.ID {
			return h, nil
		}
	}
	for _, h := range r.homes {
		if h.Scheme == k.Scheme && h.knownID() == "" {
			return nil, fmt.Errorf("record under %s: the %s KEK of this plugin has not been reached yet, so it is not known whether it is this one: %w", k, h.Scheme, kek.Unavailable)
		}
	}
	return nil, fmt.Errorf("record under %s: this plugin has no such KEK; add %s key %s to \"previous:\" in its config to read the record: %w", k, k.Scheme, k.ID, kek.Invalid)
}

// held returns a local KEK that is in memory and whose lease holds.
func (r *Ring) held(id identity) *localKEK {
	k := r.current.Load()
	if k == nil || k.id != id {
		k, _ = r.cache.Get(id)
	}
	if k == nil || k.sealer == nil || k.version.usable(r.cfg.Lease) != nil {
		return nil
	}
	return k
}

// admit keeps a local KEK that opens ciphertext. Only that proves it to be what
// the record says: whoever can write to etcd can put any version into a key ID,
// but cannot seal under it.
func (r *Ring) admit(k *localKEK, ciphertext []byte, heard time.Time) {
	seed, err := openSeed(k.sealer, ciphertext, k.aad)
	if err != nil {
		return
	}
	clear(seed)
	r.mu.Lock()
	defer r.mu.Unlock()
	k.version = r.agreed(k.version, heard)
	r.cache.Add(k.id, k)
	r.learn(k)
}

// fetched is what one unwrap brought to all who waited for it.
type fetched struct {
	k     *localKEK
	calls []string // the home's request IDs
}

// fetch asks the home for the key of k and returns k with it. Callers that ask
// for the same local KEK at the same time share one call, which goes on when one
// of them gives up, and k is in memory before the last of them is answered; in
// strict mode each asks for itself.
func (r *Ring) fetch(ctx context.Context, k *localKEK, ciphertext []byte) (*localKEK, error) {
	if r.strict() {
		bounded, cancel := r.bounded(ctx)
		defer cancel()
		return r.unwrap(bounded, k)
	}
	result := r.flight.DoChan(string(k.id[:]), func() (any, error) {
		if held := r.held(k.id); held != nil {
			return fetched{k: held}, nil // by a flight that landed since this caller looked
		}
		asked := time.Now()
		var calls kek.Calls
		shared, cancel := r.bounded(kek.WithCalls(context.WithoutCancel(ctx), &calls))
		defer cancel()
		whole, err := r.unwrap(shared, k)
		if err == nil {
			r.admit(whole, ciphertext, asked)
		}
		return fetched{whole, calls.IDs()}, err
	})
	select {
	case got := <-result:
		f := got.Val.(fetched)
		kek.RecordCall(ctx, f.calls...)
		return f.k, got.Err
	case <-ctx.Done():
		return nil, fmt.Errorf("waiting for a local KEK to be unwrapped: %w: %w", ctx.Err(), kek.Unavailable)
	}
}

func (r *Ring) unwrap(ctx context.Context, k *localKEK) (*localKEK, error) {
	key, err := k.version.home.Provider.Unwrap(ctx, k.wrapped)
	if err != nil {
		r.askSoon(err)
		return nil, fmt.Errorf("unwrapping local KEK: %w", err)
	}
	defer clear(key)
	sealer, err := newSealer(key)
	if err != nil {
		return nil, err
	}
	return k.withKey(sealer), nil
}

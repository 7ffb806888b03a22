package localkek

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/kube-kek/kube-kek/kek"
)

const (
	// After a failed renewal the next one comes sooner than Renew, after pauses
	// that double from the first to the last of these.
	firstPauseReady    = 5 * time.Second // while local KEKs work, or a refusal wants confirming
	firstPauseNotReady = time.Second     // while nothing works
	lastPause          = 30 * time.Second

	// A renewal that a failing request asked for keeps this distance from the last.
	kickGap = time.Second

	// Homes that only open are asked for their state every so many renewals.
	previousEvery = 12
)

// Run does the ring's background work until ctx ends: it makes the first local
// KEK, renews leases, sees rotations, hears refusals, and opens again what was
// known before. It is called once.
func (r *Ring) Run(ctx context.Context) {
	ctx = kek.WithPurpose(ctx, kek.Probe)
	var keeping sync.WaitGroup
	defer keeping.Wait()
	keeping.Go(func() { r.keepKnown(ctx) })
	failures := 0
	for round := 0; ctx.Err() == nil; round++ {
		started := time.Now()
		err := r.renew(ctx, round)
		if failures++; err == nil {
			failures = 0
		}
		select {
		case <-time.After(r.pause(failures, err)):
		case <-r.kick:
			select {
			case <-time.After(time.Until(started.Add(kickGap))):
			case <-ctx.Done():
			}
		case <-ctx.Done():
		}
	}
}

// pause returns how long to wait for the next renewal.
func (r *Ring) pause(failures int, err error) time.Duration {
	wait := r.cfg.Renew
	if failures > 0 {
		first := firstPauseReady
		if r.current.Load() == nil {
			first = firstPauseNotReady
		}
		wait = min(wait, lastPause, first<<min(failures-1, 5))
		var e *kek.Error
		if errors.As(err, &e) {
			wait = max(wait, min(e.RetryAfter, r.cfg.Renew))
		}
	}
	return time.Duration(float64(wait) * (0.9 + 0.2*rand.Float64()))
}

// askSoon asks for a renewal before its time when a request met the KMS's word,
// so that a refusal ends access soon; in strict mode, when it met any failure.
func (r *Ring) askSoon(err error) {
	if !kek.KindOf(err).Word() && !r.strict() {
		return
	}
	signal(r.kick)
}

func (r *Ring) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, r.cfg.CallTimeout)
}

// renew asks the home of each key version held whether it still agrees, and the
// current home which version is current. It returns what failed of that.
func (r *Ring) renew(ctx context.Context, round int) error {
	var errs []error
	r.forgetUnheld()
	for _, v := range r.heldVersions() {
		errs = append(errs, r.renewVersion(ctx, v))
	}
	errs = append(errs, r.refresh(ctx))
	for _, h := range r.homes[1:] {
		if round%previousEvery == 0 || h.knownID() == "" {
			r.ask(ctx, h) // what it says is shown; nothing waits for it
		}
	}
	return errors.Join(errs...)
}

func (r *Ring) heldVersions() []*version {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []*version
	for _, v := range r.versions {
		all = append(all, v)
	}
	return all
}

// renewVersion unwraps one local KEK of v.
func (r *Ring) renewVersion(ctx context.Context, v *version) error {
	ctx, cancel := r.bounded(ctx)
	defer cancel()
	before := v.status(r.cfg.Lease)
	asked := time.Now()
	key, err := v.home.Provider.Unwrap(ctx, v.probe)
	clear(key)
	if err != nil && errors.Is(ctx.Err(), context.Canceled) {
		return nil // shutting down: nobody said anything
	}
	if err == nil {
		v.agree(asked)
		if before.LastErr != nil {
			r.log.Info("the home of the KEK agrees again", "key_id", v.keyID)
		}
		return nil
	}

	drop := v.disagree(err)
	ended := v.usable(r.cfg.Lease)
	switch {
	case drop:
		r.drop(v, err)
		r.log.Error("the KMS refused the key twice running: its local KEKs are dropped and access has ended", "key_id", v.keyID, "error", err)
	case ended != nil && !r.strict():
		r.drop(v, ended)
		r.log.Error("the lease has ended without a word from the KMS: local KEKs are dropped", "key_id", v.keyID, "error", err)
	case kek.KindOf(err).Word():
		r.log.Warn("the KMS refused the key; it is asked once more before its local KEKs are dropped", "key_id", v.keyID, "error", err)
	case before.LastErr == nil || kek.KindOf(before.LastErr) != kek.KindOf(err):
		r.log.Warn("the lease of the KEK is not renewed; local KEKs work until it ends", "key_id", v.keyID,
			"lease_ends", before.LastSuccess.Add(r.cfg.Lease).UTC().Format(time.RFC3339), "error", err)
	}
	return fmt.Errorf("renewing the lease of %s: %w", v.keyID, err)
}

// refresh makes a new local KEK where there is none, where the home has a new
// key version, and where the current one is half used up.
func (r *Ring) refresh(ctx context.Context) error {
	err := r.refreshCurrent(ctx)
	if err != nil {
		r.mu.Lock()
		if r.current.Load() == nil {
			r.why = err
		}
		r.mu.Unlock()
	}
	return err
}

func (r *Ring) refreshCurrent(ctx context.Context) error {
	h := r.homes[0]
	ref, err := r.ask(ctx, h)
	if err != nil {
		return err
	}
	k := r.current.Load()
	if k != nil && k.wrapped.Key == ref && (r.strict() || k.uses.Load() <= r.cfg.MaxUses/2) {
		return nil
	}
	if k != nil && r.wasLeft(h, ref) {
		return nil // ask has said so
	}
	if err := r.lockMaking(ctx); err != nil {
		return err
	}
	defer r.unlockMaking()
	_, err = r.make(ctx, 0)
	if err != nil && k != nil {
		r.log.Warn("the new key version or local KEK cannot be used yet; writes stay with the old one", "key_id", k.keyID, "current_version", ref.Version, "error", err)
	}
	return err
}

// ask asks h for its current version and logs what is new about the answer.
func (r *Ring) ask(ctx context.Context, h *home) (kek.KeyRef, error) {
	ctx, cancel := r.bounded(ctx)
	defer cancel()
	tried := time.Now()
	ref, err := h.Provider.Current(ctx)
	if err != nil && errors.Is(ctx.Err(), context.Canceled) {
		return kek.KeyRef{}, err // shutting down: nobody said anything
	}
	ref = cut(ref)
	if known := h.knownID(); err == nil && known != "" && known != ref.ID {
		err = &kek.Error{Op: kek.OpCurrent, Key: ref, Kind: kek.Invalid, Err: fmt.Errorf("the home answers for another key than %s", known)}
	}
	var facts kek.Facts
	if i, ok := kek.As[kek.Informer](h.Provider); ok {
		facts = i.Facts()
	}

	h.mu.Lock()
	defer h.mu.Unlock()
	if err == nil {
		h.ID = ref.ID
	}
	if err != nil && (h.lastErr == nil || kek.KindOf(h.lastErr) != kek.KindOf(err)) {
		r.log.Warn("the home of the KEK does not tell its current version", "provider", h.Scheme, "key", h.ID, "error", err)
	}
	if err == nil && h.lastErr != nil {
		r.log.Info("the home of the KEK tells its current version again", "provider", h.Scheme, "key", ref)
	}
	if err == nil && ref != h.lastRef && r.wasLeft(h, ref) {
		r.log.Warn("the home says that a version is current which was left before, and a key ID is never used twice: writes do not go back to it. If this is meant, set another kek.epoch and restart", "provider", h.Scheme, "key", ref)
	}
	if notes := strings.Join(facts.Notes, " "); notes != h.notes {
		h.notes = notes
		if notes != "" {
			r.log.Warn("note on the KEK: "+notes, "provider", h.Scheme, "key", facts.Key.ID)
		}
	}
	if err == nil {
		h.lastRef = ref
	}
	h.lastErr, h.lastTry = err, tried
	return ref, err
}

func (r *Ring) wasLeft(h *home, ref kek.KeyRef) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.left[KeyID{Scheme: h.Scheme, ID: ref.ID, Version: ref.Version, Epoch: h.Epoch}.String()]
}

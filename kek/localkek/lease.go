package localkek

import (
	"fmt"
	"sync"
	"time"

	"github.com/kube-kek/kube-kek/kek"
)

// A refusal must be heard twice running before it is believed, so that one odd
// answer of an eventually consistent home does not stop a control plane.
const refusalsToBelieve = 2

// versionID tells key versions apart within a ring.
type versionID struct{ scheme, id, version string }

// version is one version of one KEK and the lease of all local KEKs wrapped
// under it: they share its fate.
type version struct {
	home  *home
	keyID string      // as its first local KEK has it
	probe kek.Wrapped // a local KEK under it that opened; renewals unwrap it

	mu        sync.Mutex
	firstSeen time.Time
	agreed    time.Time // when the home last agreed to open something under it
	refusals  int       // since then
	lastErr   error     // since then
	dropped   error     // why it may not be used any more; a new version takes its place
}

func (v *version) id() versionID {
	return versionID{v.home.Scheme, v.probe.Key.ID, v.probe.Key.Version}
}

// usable returns nil while local KEKs under v may be used. A lease of 0 holds
// as long as the home's last word was yes.
func (v *version) usable(lease time.Duration) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case v.dropped != nil:
		return fmt.Errorf("local KEKs under %s may not be used: %w", v.keyID, v.dropped)
	case lease == 0 && v.lastErr != nil:
		return fmt.Errorf("the home of %s does not agree, and without a lease nothing is used: %w", v.keyID, v.lastErr)
	case lease != 0 && time.Since(v.agreed) >= lease:
		err := v.lastErr
		if err == nil {
			err = kek.Unavailable
		}
		return fmt.Errorf("the lease of %s has ended: its home last agreed at %s and the lease is %s: %w",
			v.keyID, v.agreed.UTC().Format(time.RFC3339), lease, err)
	}
	return nil
}

// agree notes that the home agreed to a request made at heard.
func (v *version) agree(heard time.Time) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.firstSeen.IsZero() {
		v.firstSeen = heard
	}
	if heard.After(v.agreed) {
		v.agreed = heard
	}
	v.refusals, v.lastErr = 0, nil
}

// disagree notes a failed renewal and reports whether it was the refusal that
// ends the lease. An outage leaves the lease as it is.
func (v *version) disagree(err error) (drop bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.lastErr = err
	if !kek.KindOf(err).Word() {
		return false
	}
	v.refusals++
	if v.refusals < refusalsToBelieve {
		return false
	}
	v.dropped = err
	return true
}

// status returns the fields that Snapshot shows.
func (v *version) status(lease time.Duration) VersionStatus {
	v.mu.Lock()
	defer v.mu.Unlock()
	return VersionStatus{
		Scheme: v.home.Scheme, Key: v.probe.Key, KeyID: v.keyID,
		FirstSeen: v.firstSeen, LastSuccess: v.agreed, Refusals: v.refusals, LastErr: v.lastErr,
		LeaseLeft: max(0, lease-time.Since(v.agreed)),
	}
}

// agreed returns the ring's own version for v, which it makes known if it was
// not, with the home's word of heard. It is called with r.mu held.
func (r *Ring) agreed(v *version, heard time.Time) *version {
	known, ok := r.versions[v.id()]
	if !ok {
		known = v
		r.versions[v.id()] = v
	}
	known.agree(heard)
	return known
}

// drop forgets all local KEKs under v. What is read under it afterwards asks the
// home again.
func (r *Ring) drop(v *version, why error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	v.mu.Lock()
	v.dropped = why
	v.mu.Unlock()
	if r.versions[v.id()] == v {
		delete(r.versions, v.id())
	}
	for _, id := range r.cache.Keys() {
		if k, ok := r.cache.Peek(id); ok && k.version == v {
			r.cache.Remove(id)
		}
	}
	if k := r.current.Load(); k != nil && k.version == v {
		r.current.Store(nil)
		r.why = why
	}
}

// forgetUnheld drops the record of versions that no local KEK in memory belongs
// to any more, so that their homes are not asked for nothing.
func (r *Ring) forgetUnheld() {
	r.mu.Lock()
	defer r.mu.Unlock()
	held := r.heldPerVersion()
	for id, v := range r.versions {
		if held[v] == 0 {
			delete(r.versions, id)
		}
	}
}

// heldPerVersion counts the local KEKs in memory.
func (r *Ring) heldPerVersion() map[*version]int {
	held := map[*version]int{}
	for _, k := range r.cache.Values() {
		held[k.version]++
	}
	if k := r.current.Load(); k != nil && !r.cache.Contains(k.id) {
		held[k.version]++
	}
	return held
}

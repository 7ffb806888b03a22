package localkek

import (
	"cmp"
	"slices"
	"time"

	"github.com/kube-kek/kube-kek/kek"
)

// Snapshot is what the ring knows at a moment, for metrics and health pages. It
// holds no key material.
type Snapshot struct {
	KeyID     string          // of the current local KEK, "" where none is usable
	Err       error           // why [Ring.KeyID] fails, nil if it does not
	Strict    bool            // no lease: each use asks the KMS
	Rotations uint64          // times that the current key ID moved since start
	LocalKEKs int             // in memory
	Known     int             // in memory, or to be opened again in the background
	Versions  []VersionStatus // those with local KEKs in memory, the current one first
	Homes     []HomeStatus    // the current one first, then the previous ones
}

// VersionStatus is the lease of one key version.
type VersionStatus struct {
	Scheme      string
	Key         kek.KeyRef
	KeyID       string
	Current     bool
	FirstSeen   time.Time // since start
	LastSuccess time.Time // when its home last agreed to open something under it
	LeaseLeft   time.Duration
	LocalKEKs   int
	Refusals    int   // since then
	LastErr     error // of the last renewal, nil if well
}

// HomeStatus is what a home last said of its KEK.
type HomeStatus struct {
	Scheme, ID string
	Facts      kek.Facts
	LastErr    error     // of the last Current, nil if well
	LastTry    time.Time // zero before the first
}

// Snapshot asks nobody.
func (r *Ring) Snapshot() Snapshot {
	s := Snapshot{Strict: r.strict(), Known: r.known.Len()}
	s.KeyID, s.Err = r.KeyID()

	r.mu.Lock()
	s.Rotations = r.rotations
	held := r.heldPerVersion()
	current := r.current.Load()
	for _, v := range r.versions {
		st := v.status(r.cfg.Lease)
		if !s.Strict { // there the current one is known without its key
			st.LocalKEKs = held[v]
		}
		if current != nil && current.version == v {
			st.Current, st.KeyID = true, current.keyID // v may have been met under another epoch first
		}
		s.LocalKEKs += st.LocalKEKs
		s.Versions = append(s.Versions, st)
	}
	r.mu.Unlock()
	slices.SortFunc(s.Versions, func(a, b VersionStatus) int {
		if a.Current != b.Current {
			if a.Current {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.KeyID, b.KeyID)
	})
	for _, h := range r.homes {
		s.Homes = append(s.Homes, h.status())
	}
	return s
}

func (h *home) status() HomeStatus {
	var facts kek.Facts
	if i, ok := kek.As[kek.Informer](h.Provider); ok {
		facts = i.Facts()
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return HomeStatus{Scheme: h.Scheme, ID: h.ID, Facts: facts, LastErr: h.lastErr, LastTry: h.lastTry}
}

// knownID returns the home's key, "" while only the home could tell it.
func (h *home) knownID() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.ID
}

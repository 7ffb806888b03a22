package localkek

import (
	"context"
	"time"

	"github.com/kube-kek/kube-kek/kek"
)

// A running kube-apiserver keeps its seeds and asks for none of them again, so a
// plugin that was restarted beside it would meet an outage with an empty memory,
// and kube-apiserver's own restart in that outage would fail. The ring therefore
// knows, beyond the local KEKs that it holds, those that it has held: as records
// under them, which are no secret (etcd has their like), and which whoever may
// ask the KMS can open. What is known and not held is opened again in the
// background: after a restart, from a [Store], and after a refusal or a lease
// that ended.

// Store keeps what a ring knows from one process to the next.
type Store interface {
	// Load returns what the last Save was given, nil if there was none.
	Load() ([]Sealed, error)

	// Save replaces what is kept. The least recently learnt record comes first.
	Save(known []Sealed) error
}

// learn makes k known. Its record seals nothing: a single zero byte.
func (r *Ring) learn(k *localKEK) {
	if r.strict() || r.known.Contains(k.id) {
		return
	}
	ciphertext, err := sealSeed(k.sealer, []byte{0}, k.aad)
	if err != nil {
		return // k stays usable; it is not known after a restart
	}
	r.known.Add(k.id, Sealed{
		KeyID: k.keyID, Ciphertext: ciphertext, Annotations: map[string][]byte{AnnotationName: k.annotation},
	})
	signal(r.learnt)
}

// signal wakes whoever waits on c, now or next.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

const (
	// News are gathered for so long before they are saved: a cold start brings
	// many at once.
	saveAfter = 200 * time.Millisecond

	// A known local KEK that nobody can open, because the configuration or the
	// key's file is wrong, say, is tried again after so many renewals.
	hopelessFor = 12
)

// keeper is what the goroutine that keeps the known knows of it.
type keeper struct {
	r        *Ring
	unsaved  bool
	saveErr  string               // as it was last logged
	hopeless map[identity]int     // the round in which a record is tried again
	refused  map[string]time.Time // since when a key ID is refused
}

// keepKnown loads what an earlier process knew, saves what is new, and opens
// again what is known and not held, until ctx ends.
func (r *Ring) keepKnown(ctx context.Context) {
	if r.strict() {
		return
	}
	k := &keeper{r: r, hopeless: map[identity]int{}, refused: map[string]time.Time{}}
	k.load()
	for round := 0; ctx.Err() == nil; {
		select {
		case <-r.learnt:
			k.unsaved = true
			select {
			case <-time.After(saveAfter):
			case <-ctx.Done():
			}
		case <-r.ready:
			k.warm(ctx, round)
		case <-time.After(r.cfg.Renew):
			round++
			k.warm(ctx, round)
		case <-ctx.Done():
		}
		k.save()
	}
}

func (k *keeper) load() {
	r := k.r
	if r.cfg.Store == nil {
		return
	}
	records, err := r.cfg.Store.Load()
	if err != nil {
		r.log.Warn("the local KEKs of the last run are not known; each is opened when kube-apiserver asks for it", "error", err)
		return
	}
	for _, s := range records {
		if annotation, err := s.annotation(); err == nil && checkSizes(s.KeyID, annotation) == nil {
			r.known.Add(identify(additionalData(r.cfg.Cluster, s.KeyID, annotation)), s)
		}
	}
	if len(records) > 0 {
		r.log.Info("the local KEKs of the last run are opened in the background", "count", len(records))
	}
}

// save writes what is new, and tries again with each renewal where it cannot.
func (k *keeper) save() {
	r := k.r
	if r.cfg.Store == nil || !k.unsaved {
		return
	}
	if err := r.cfg.Store.Save(r.known.Values()); err != nil {
		if err.Error() != k.saveErr {
			k.saveErr = err.Error()
			r.log.Warn("what local KEKs are in use is not kept; after a restart of the plugin each is opened when kube-apiserver asks for it", "error", err)
		}
		return
	}
	k.unsaved, k.saveErr = false, ""
}

// warm opens what is known and not held. It stops at an outage, and asks no
// version twice that was refused. What is refused for as long as a lease is
// forgotten: its version was retired. Nothing else is, since a wrong
// configuration can be put right.
func (k *keeper) warm(ctx context.Context, round int) {
	r := k.r
	asked := map[string]bool{} // key IDs that were refused in this round
	for _, id := range r.known.Keys() {
		s, ok := r.known.Peek(id)
		if !ok || r.held(id) != nil || asked[s.KeyID] || k.hopeless[id] > round {
			continue
		}
		bounded, cancel := r.bounded(ctx)
		seed, err := r.Open(bounded, s)
		cancel()
		clear(seed)
		switch kind := kek.KindOf(err); {
		case err == nil:
			delete(k.refused, s.KeyID)
		case kind == kek.Corrupt || kind == kek.Invalid:
			if _, again := k.hopeless[id]; !again {
				r.log.Warn("a local KEK of the last run cannot be opened; if records under it are still in etcd, they cannot be read", "key_id", s.KeyID, "error", err)
			}
			k.hopeless[id] = round + hopelessFor
		case kind.Word():
			asked[s.KeyID] = true
			if since, ok := k.refused[s.KeyID]; !ok {
				k.refused[s.KeyID] = time.Now()
			} else if time.Since(since) >= r.cfg.Lease {
				k.forget(s.KeyID)
			}
		default:
			return // an outage; the next renewal tries again
		}
	}
}

// forget forgets all that is known under a key ID.
func (k *keeper) forget(keyID string) {
	n := 0
	for _, id := range k.r.known.Keys() {
		if s, ok := k.r.known.Peek(id); ok && s.KeyID == keyID {
			k.r.known.Remove(id)
			n++
		}
	}
	delete(k.refused, keyID)
	k.unsaved = true
	k.r.log.Info("local KEKs are forgotten whose key version the KMS has refused for as long as a lease", "key_id", keyID, "count", n)
}

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

// saveAfter is how long news are gathered before they are saved: a cold start
// brings many at once.
const saveAfter = time.Second

// keepKnown loads what an earlier process knew, saves what is new, and opens
// again what is known and not held, until ctx ends.
func (r *Ring) keepKnown(ctx context.Context) {
	if r.strict() {
		return
	}
	r.load()
	for ctx.Err() == nil {
		select {
		case <-r.learnt:
			select {
			case <-time.After(saveAfter):
			case <-ctx.Done():
			}
			r.save()
		case <-r.ready:
			r.warm(ctx)
		case <-time.After(r.cfg.Renew):
			r.warm(ctx)
		case <-ctx.Done():
		}
	}
}

func (r *Ring) load() {
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

func (r *Ring) save() {
	if r.cfg.Store == nil {
		return
	}
	if err := r.cfg.Store.Save(r.known.Values()); err != nil {
		r.log.Warn("what local KEKs are in use is not kept; after a restart of the plugin each is opened when kube-apiserver asks for it", "error", err)
	}
}

// warm opens what is known and not held. It stops at an outage, and asks no
// version twice that was refused. A record that cannot be opened by anyone, such
// as one of a home that the configuration no longer has, is forgotten.
func (r *Ring) warm(ctx context.Context) {
	refused := map[string]bool{}
	for _, id := range r.known.Keys() {
		s, ok := r.known.Peek(id)
		if !ok || r.held(id) != nil || refused[s.KeyID] {
			continue
		}
		bounded, cancel := r.bounded(ctx)
		seed, err := r.Open(bounded, s)
		cancel()
		clear(seed)
		switch kind := kek.KindOf(err); {
		case err == nil:
		case kind == kek.Corrupt || kind == kek.Invalid:
			r.known.Remove(id)
			signal(r.learnt)
			r.log.Info("a local KEK of the last run is forgotten", "key_id", s.KeyID, "error", err)
		case kind.Word():
			refused[s.KeyID] = true
		default:
			return // an outage; the next renewal tries again
		}
	}
}

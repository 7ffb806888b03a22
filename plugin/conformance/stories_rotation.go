package conformance

import (
	"context"
	"fmt"
	"slices"
	"time"
)

var rotationStories = []check{
	{Info: Info{
		Name: "rotation-seen", Level: Must, Source: kep + ", Rotation; " + docs, Needs: []string{"rotate"},
		About: "After a rotation of the KEK the key_id changes, within the time that was given: a constant one makes rotation invisible.",
	}, run: rotationSeen},
	{Info: Info{
		Name: "rotation-agrees", Level: Must, Source: probe + " rotateDEKOnKeyIDChange", Needs: []string{"rotate"},
		About: "While a rotation comes into effect Status and Encrypt never answer different key_ids.",
	}, run: rotationAgrees},
	{Info: Info{
		Name: "rotation-no-flip-flop", Level: Must, Source: kep + ", Rotation: a key_id that was left is never used again", Needs: []string{"rotate"},
		About: "The key_id changes once, and does not go back.",
	}, run: rotationNoFlipFlop},
	{Info: Info{
		Name: "rotation-old-readable", Level: Must, Source: kep + ", Rotation; " + docs, Needs: []string{"rotate"},
		About: "What was encrypted before the rotation, and while it came, is decrypted after it.",
	}, run: rotationOldReadable},
	{Info: Info{
		Name: "rotation-records-mixed", Level: Must, Source: kep + ", Decrypt: the key_id says which key, no other is tried", Needs: []string{"rotate"},
		About: "Parts of records under two key_ids, put together, are refused.",
	}, unless: []string{"key-id-unknown", "annotation-changed", "annotation-missing", "rotation-seen", "rotation-old-readable"}, run: rotationMixed},
	{Info: Info{
		Name: "rotation-storage", Level: Must, Source: "k8s.io/apiserver: its own code for storage at rest, as a library", Needs: []string{"rotate"},
		About: "kube-apiserver's own code reads what was stored before the rotation, calls it stale, and what it then stores fresh.",
	}, unless: []string{"rotation-seen", "rotation-old-readable"}, run: rotationStorage},
}

// rotation is what was seen while the KEK was rotated.
type rotation struct {
	before  []record
	stored  stored // by a kube-apiserver before the rotation
	oldKey  string
	newKey  string        // "" if it did not change
	after   time.Duration // when it changed
	looks   []look
	watched time.Duration
}

// look is a Status, an Encrypt and a Status again.
type look struct {
	at                     time.Duration
	before, encrypt, after string // key_ids
	record                 record
	err                    error
}

func (s *session) rotation(ctx context.Context) (*rotation, error) {
	return s.rotated.do(func() (*rotation, error) {
		r := &rotation{}
		var err error
		if r.before, err = s.records(ctx, 10); err != nil {
			return nil, err
		}
		st, err := s.conn.Status(ctx)
		if err != nil {
			return nil, err
		}
		r.oldKey = st.KeyId
		if a, err := s.start(ctx); err == nil {
			r.stored, _ = s.write(ctx, a, "rotated") // where it could not, storage has said so
			a.stop()
		}
		if _, err := s.hook(ctx, "rotate"); err != nil {
			return nil, err
		}
		return r, s.watch(ctx, r)
	})
}

// watch looks until the key_id has changed, and for a while after that.
func (s *session) watch(ctx context.Context, r *rotation) error {
	settle := min(max(s.o.Within/20, time.Second), 30*time.Second)
	start := time.Now()
	for {
		l := s.look(ctx)
		l.at = time.Since(start)
		r.looks = append(r.looks, l)
		r.watched = l.at
		if r.newKey == "" && l.err == nil && l.after != r.oldKey {
			r.newKey, r.after = l.after, l.at
		}
		if r.newKey == "" && l.at > s.o.Within || r.newKey != "" && l.at > r.after+settle {
			return nil
		}
		if err := pause(ctx, s.interval()); err != nil {
			return err
		}
	}
}

func (s *session) look(ctx context.Context) (l look) {
	for _, step := range []func() error{
		func() error { st, err := s.conn.Status(ctx); l.before = st.GetKeyId(); return err },
		func() (err error) {
			if l.record, err = s.encrypt(ctx, s.conn, s.seed()); err == nil {
				l.encrypt = l.record.KeyId
			}
			return err
		},
		func() error { st, err := s.conn.Status(ctx); l.after = st.GetKeyId(); return err },
	} {
		if l.err = step(); l.err != nil {
			return l
		}
	}
	return l
}

func rotationSeen(ctx context.Context, s *session) (string, error) {
	r, err := s.rotation(ctx)
	if err != nil {
		return "", err
	}
	if r.newKey == "" {
		return "", breachf("%s after the rotation Status still answers %q; name the KEK's version in the key_id, and ask the KMS for it now and then", seconds(r.watched), r.oldKey)
	}
	for _, l := range r.looks {
		if l.err != nil {
			return "", breachf("%s after the rotation: %w", seconds(l.at), l.err)
		}
	}
	return fmt.Sprintf("the key_id went from %q to %q %s after the rotation", r.oldKey, r.newKey, seconds(r.after)), nil
}

func rotationAgrees(ctx context.Context, s *session) (string, error) {
	r, err := s.rotation(ctx)
	if err != nil {
		return "", err
	}
	for _, l := range r.looks {
		if l.err == nil && l.encrypt != l.before && l.encrypt != l.after {
			return "", breachf("%s after the rotation Status answered %q, Encrypt %q and Status again %q; move both at once", seconds(l.at), l.before, l.encrypt, l.after)
		}
	}
	return fmt.Sprintf("in %d looks over %s Status and Encrypt agreed", len(r.looks), seconds(r.watched)), nil
}

func rotationNoFlipFlop(ctx context.Context, s *session) (string, error) {
	r, err := s.rotation(ctx)
	if err != nil {
		return "", err
	}
	path := []string{r.oldKey}
	for _, l := range r.looks {
		for _, id := range []string{l.before, l.after} {
			if id == "" || id == path[len(path)-1] {
				continue
			}
			if slices.Contains(path, id) {
				return "", breachf("%s after the rotation Status went back to %q, which it had left; every change makes all records stale", seconds(l.at), id)
			}
			path = append(path, id)
		}
	}
	if len(path) > 2 {
		return "", breachf("one rotation made Status go through %q", path)
	}
	return fmt.Sprintf("in %d looks over %s the key_id changed %d times", len(r.looks), seconds(r.watched), len(path)-1), nil
}

func rotationOldReadable(ctx context.Context, s *session) (string, error) {
	r, err := s.rotation(ctx)
	if err != nil {
		return "", err
	}
	records := slices.Clone(r.before)
	for _, l := range r.looks {
		if l.err == nil {
			records = append(records, l.record)
		}
	}
	err = s.with(func(c *client) error {
		return inParallel(len(records), 16, func(i int) error { return s.opens(ctx, c, records[i]) })
	})
	if err != nil {
		return "", breachf("after the rotation: %w; old keys stay readable until everything is migrated", err)
	}
	return fmt.Sprintf("%d records from before the rotation and %d from while it came were decrypted after it", len(r.before), len(records)-len(r.before)), nil
}

func rotationMixed(ctx context.Context, s *session) (string, error) {
	r, err := s.rotation(ctx)
	if err != nil {
		return "", err
	}
	after, err := s.oneRecord(ctx)
	if err != nil {
		return "", err
	}
	before := r.before[0]
	if _, err := s.refused(ctx, after, swaps("a record from before the rotation", after, before)); err != nil {
		return "", err
	}
	return s.refused(ctx, before, swaps("a record from after the rotation", before, after))
}

func rotationStorage(ctx context.Context, s *session) (string, error) {
	r, err := s.rotation(ctx)
	if err != nil {
		return "", err
	}
	if r.stored.bytes == nil {
		return "", skipf("kube-apiserver could not write before the rotation; see storage")
	}
	a, err := s.start(ctx)
	if err != nil {
		return "", err
	}
	defer a.stop()
	if err := a.ready(ctx); err != nil {
		return "", breachf("after the rotation kube-apiserver is not ready: %w", err)
	}
	stale, err := a.reads(ctx, r.stored)
	if err != nil {
		return "", breachf("an object from before the rotation: %w", err)
	}
	if !stale {
		return "", breachf("kube-apiserver does not call an object from before the rotation stale, so no migration rewrites it")
	}
	rewritten, err := s.write(ctx, a, "rotated")
	if err != nil {
		return "", err
	}
	if err := a.readsFresh(ctx, rewritten); err != nil {
		return "", err
	}
	return "kube-apiserver read the object from before the rotation as stale, and what it wrote then as fresh", nil
}

package conformance

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

var (
	outageHooks  = []string{"kms-down", "kms-up"}
	outageSource = ours + ": an outage of the KMS that becomes one of the control plane"
)

var outageStories = []check{
	{Info: Info{
		Name: "outage-status-answers", Level: Must, Source: grpcClient + ": 3 s a call", Needs: outageHooks,
		About: "While the KMS is away Status is answered, well or with an error, within the 3 s of a call.",
	}, run: outageStatusAnswers},
	{Info: Info{
		Name: "outage-status-clear", Level: Should, Source: "kubernetes/kubernetes#138950", Needs: outageHooks,
		About: "A plugin that is not well answers Status with a gRPC error, not with a sick healthz beside a key_id: kube-apiserver would extend its old seed for ever.",
	}, run: outageStatusClear},
	{Info: Info{
		Name: "outage-key-id", Level: Must, Source: kep + ", Rotation", Needs: outageHooks,
		About: "The key_id is the same before, during and after an outage of the KMS.",
	}, run: outageKeyID},
	{Info: Info{
		Name: "outage-decrypt-ends", Level: Must, Source: grpcClient + ": 3 s a call", Needs: outageHooks,
		About: "While the KMS is away each Decrypt gives the seed, or its own error within the 3 s of a call.",
	}, run: outageDecryptEnds},
	{Info: Info{
		Name: "outage-decrypt-warm", Level: Advice, Source: outageSource, Needs: outageHooks,
		About: "While the KMS is away, what the plugin has decrypted before is decrypted.",
	}, run: outageDecryptWarm},
	{Info: Info{
		Name: "outage-encrypt", Level: Advice, Source: outageSource, Needs: outageHooks,
		About: "While the KMS is away Encrypt works: without it no kube-apiserver can start.",
	}, run: outageEncrypt},
	{Info: Info{
		Name: "outage-apiserver-restart", Level: Advice, Source: "k8s.io/apiserver: its own code for storage at rest, as a library", Needs: outageHooks,
		About: "A kube-apiserver that starts while the KMS is away is ready, reads what was stored before, and writes.",
	}, run: outageAPIServer},
	{Info: Info{
		Name: "outage-recovery", Level: Must, Source: kep + ", Status; " + ours, Needs: outageHooks,
		About: "Once the KMS is back the plugin is well again by itself, and all records are readable.",
	}, run: outageRecovery},
	{Info: Info{
		Name: "outage-plugin-restart", Level: Should, Source: ours + ": restart loops and boot deadlocks", Needs: append([]string{"restart"}, outageHooks...),
		About: "A plugin that starts while the KMS is away listens, answers Status within 3 s, well or not, and is well by itself once the KMS is back.",
	}, unless: []string{"outage-status-answers", "outage-recovery"}, run: outagePluginRestart},
}

// attempt is one call during an outage.
type attempt struct {
	at, took time.Duration
	answer   string // in words
	ok       bool
	late     bool // the client gave up
	sick     bool // Status: a key_id beside a healthz other than ok
	keyID    string
}

// outage is what was seen while the KMS was away.
type outage struct {
	keyID      string
	statuses   []attempt
	warm, cold []attempt
	encrypt    attempt
	apiserver  error // why a kube-apiserver that started then did not work
	recovered  time.Duration
	recovery   error // why it did not
	lastKeyID  string
}

func (s *session) kmsAway(ctx context.Context) (*outage, error) {
	return s.outage.do(func() (*outage, error) {
		defer s.revive(ctx)
		o := &outage{}
		cold, err := s.records(ctx, 3)
		if err != nil {
			return nil, err
		}
		if s.o.Hooks.Restart != nil { // which makes them cold for certain
			if _, err := s.hook(ctx, "restart"); err != nil {
				return nil, err
			}
			if _, err := s.becomesWell(ctx); err != nil {
				return nil, err
			}
		}
		warm, err := s.records(ctx, 3)
		if err != nil {
			return nil, err
		}
		if _, err := s.becomesWell(ctx, warm...); err != nil {
			return nil, err
		}
		if o.keyID, err = s.keyID(ctx); err != nil {
			return nil, err
		}
		object, err := s.storedBefore(ctx)
		if err != nil {
			return nil, err
		}

		if _, err := s.hook(ctx, "kms-down"); err != nil {
			return nil, errors.Join(err, s.undo(ctx, "kms-up"))
		}
		s.during(ctx, o, warm, cold, object)
		if err := s.undo(ctx, "kms-up"); err != nil {
			return nil, err
		}
		o.recovered, o.recovery = s.becomesWell(ctx, append(warm, cold...)...)
		o.lastKeyID, _ = s.keyID(ctx)
		return o, ctx.Err()
	})
}

// storedBefore writes an object, or returns an empty one where a kube-apiserver
// cannot, which storage has said.
func (s *session) storedBefore(ctx context.Context) (stored, error) {
	a, err := s.start(ctx)
	if err != nil {
		return stored{}, err
	}
	defer a.stop()
	o, _ := s.write(ctx, a, "outage")
	return o, nil
}

// during asks for everything while the KMS is away.
func (s *session) during(ctx context.Context, o *outage, warm, cold []record, object stored) {
	start := time.Now()
	for time.Since(start) < s.o.Outage && ctx.Err() == nil {
		o.statuses = append(o.statuses, s.askStatus(ctx, start))
		pause(ctx, min(max(s.o.Outage/40, 20*time.Millisecond), time.Second))
	}
	o.warm = s.askDecrypts(ctx, start, warm)
	o.cold = s.askDecrypts(ctx, start, cold)
	o.encrypt = ask(start, func() error { _, err := s.encrypt(ctx, s.conn, s.seed()); return err })
	o.apiserver = s.startsAnew(ctx, object)
}

// askDecrypts stops at the first that hangs.
func (s *session) askDecrypts(ctx context.Context, start time.Time, records []record) (all []attempt) {
	for _, r := range records {
		a := ask(start, func() error { return s.opens(ctx, s.conn, r) })
		if all = append(all, a); a.late {
			break
		}
	}
	return all
}

func (s *session) askStatus(ctx context.Context, start time.Time) attempt {
	var a attempt
	var sick bool
	var id string
	a = ask(start, func() error {
		st, err := s.conn.Status(ctx)
		if err != nil {
			return err
		}
		id = st.KeyId
		if st.Healthz != "ok" {
			sick = st.KeyId != ""
			return fmt.Errorf("Status answered healthz %q, key_id %q", st.Healthz, st.KeyId)
		}
		return nil
	})
	a.keyID, a.sick = id, sick
	return a
}

// ask makes a call and notes how it went.
func ask(start time.Time, f func() error) attempt {
	a := attempt{at: time.Since(start), ok: true, answer: "ok"}
	var err error
	if a.took, err = took(f); err != nil {
		a.ok, a.answer = false, err.Error()
		a.late = hung(a.took, err)
	}
	return a
}

// startsAnew starts a kube-apiserver that must do its work.
func (s *session) startsAnew(ctx context.Context, object stored) error {
	a, err := s.start(ctx)
	if err != nil {
		return err
	}
	defer a.stop()
	if err := a.ready(ctx); err != nil {
		return fmt.Errorf("it is not ready: %w", err)
	}
	if object.bytes != nil {
		if _, err := a.reads(ctx, object); err != nil {
			return err
		}
	}
	o, err := s.write(ctx, a, "anew")
	if err != nil {
		return err
	}
	return a.readsFresh(ctx, o)
}

func outageStatusAnswers(ctx context.Context, s *session) (string, error) {
	o, err := s.kmsAway(ctx)
	if err != nil {
		return "", err
	}
	if len(o.statuses) == 0 {
		return "", skipf("the outage was too short for one Status")
	}
	slowest := o.statuses[0]
	var story []string
	for i, a := range o.statuses {
		if a.late {
			return "", breachf("%s into the outage Status was not answered within %s; answer from memory, or with an error", seconds(a.at), callTimeout)
		}
		if a.took > slowest.took {
			slowest = a
		}
		if i == 0 || a.ok != o.statuses[i-1].ok {
			story = append(story, fmt.Sprintf("from %s on: %s", seconds(a.at), a.answer))
		}
	}
	return fmt.Sprintf("%d calls of Status, the slowest %s; %s", len(o.statuses), slowest.took.Round(time.Microsecond), strings.Join(story, "; ")), nil
}

func outageStatusClear(ctx context.Context, s *session) (string, error) {
	o, err := s.kmsAway(ctx)
	if err != nil {
		return "", err
	}
	for _, a := range o.statuses {
		if a.sick {
			return "", breachf("%s into the outage %s; kube-apiserver never stops writing under the old seed then, though it is not ready: answer a gRPC error", seconds(a.at), a.answer)
		}
	}
	return fmt.Sprintf("%d calls of Status answered ok or an error", len(o.statuses)), nil
}

func outageKeyID(ctx context.Context, s *session) (string, error) {
	o, err := s.kmsAway(ctx)
	if err != nil {
		return "", err
	}
	for _, a := range o.statuses {
		if a.keyID != "" && a.keyID != o.keyID {
			return "", breachf("%s into the outage Status answered key_id %q instead of %q: every record became stale", seconds(a.at), a.keyID, o.keyID)
		}
	}
	if o.recovery == nil && o.lastKeyID != o.keyID {
		return "", breachf("the key_id was %q before the outage and is %q after it, with no rotation", o.keyID, o.lastKeyID)
	}
	return fmt.Sprintf("%q throughout", o.keyID), nil
}

func outageDecryptEnds(ctx context.Context, s *session) (string, error) {
	o, err := s.kmsAway(ctx)
	if err != nil {
		return "", err
	}
	var seen []string
	for _, kind := range []struct {
		name     string
		attempts []attempt
	}{{"decrypted before", o.warm}, {"not decrypted before", o.cold}} {
		slowest, opened := attempt{}, 0
		for _, a := range kind.attempts {
			if a.late {
				return "", breachf("a Decrypt of what was %s had no answer within %s during the outage; give up on the KMS before that, and say why", kind.name, callTimeout)
			}
			if a.ok {
				opened++
			}
			if a.took >= slowest.took {
				slowest = a
			}
		}
		seen = append(seen, fmt.Sprintf("of what was %s %d of %d were decrypted, the slowest answer (%s) after %s",
			kind.name, opened, len(kind.attempts), slowest.answer, slowest.took.Round(time.Millisecond)))
	}
	return "during the outage, " + strings.Join(seen, "; "), nil
}

func outageDecryptWarm(ctx context.Context, s *session) (string, error) {
	o, err := s.kmsAway(ctx)
	if err != nil {
		return "", err
	}
	for _, a := range o.warm {
		if !a.ok {
			return "", breachf("during the outage a Decrypt of what the plugin had decrypted before failed after %s: %s", a.took.Round(time.Millisecond), a.answer)
		}
	}
	return fmt.Sprintf("during the outage %d Decrypts of what the plugin had decrypted before succeeded", len(o.warm)), nil
}

func outageEncrypt(ctx context.Context, s *session) (string, error) {
	o, err := s.kmsAway(ctx)
	if err != nil {
		return "", err
	}
	if !o.encrypt.ok {
		return "", breachf("during the outage Encrypt failed after %s: %s; a kube-apiserver that starts now reads and writes nothing", o.encrypt.took.Round(time.Millisecond), o.encrypt.answer)
	}
	return "during the outage Encrypt worked", nil
}

func outageAPIServer(ctx context.Context, s *session) (string, error) {
	o, err := s.kmsAway(ctx)
	if err != nil {
		return "", err
	}
	if o.apiserver != nil {
		return "", breachf("a kube-apiserver that starts during the outage does not work: %w", o.apiserver)
	}
	return "a kube-apiserver that started during the outage was ready, read and wrote", nil
}

func outageRecovery(ctx context.Context, s *session) (string, error) {
	o, err := s.kmsAway(ctx)
	if err != nil {
		return "", err
	}
	if o.recovery != nil {
		return "", breachf("once the KMS was back the plugin was %w; it must not need a restart", o.recovery)
	}
	return fmt.Sprintf("well %s after the KMS was back, with all records readable", seconds(o.recovered)), nil
}

func outagePluginRestart(ctx context.Context, s *session) (string, error) {
	defer s.revive(ctx)
	records, err := s.records(ctx, 5)
	if err != nil {
		return "", err
	}
	if _, err := s.hook(ctx, "kms-down"); err != nil {
		return "", errors.Join(err, s.undo(ctx, "kms-up"))
	}
	var statuses []attempt
	_, hookErr := s.hook(ctx, "restart")
	for start := time.Now(); hookErr == nil && time.Since(start) < s.o.Outage && ctx.Err() == nil; {
		statuses = append(statuses, s.askStatus(ctx, start))
		pause(ctx, min(max(s.o.Outage/40, 20*time.Millisecond), time.Second))
	}
	if err := s.undo(ctx, "kms-up"); err != nil {
		return "", err
	}
	if hookErr != nil {
		s.revive(ctx)
		return "", hookErr
	}
	recovered, recovery := s.becomesWell(ctx, records...)
	// The first may have met the moment of the start.
	for _, a := range statuses[min(1, len(statuses)):] {
		if a.late {
			return "", breachf("%s after a start without the KMS Status was not answered within %s; listen first, wait for the KMS then, and answer that you do", seconds(a.at), callTimeout)
		}
	}
	if recovery != nil {
		return "", breachf("a plugin that was started without its KMS was, once that was back, %w", recovery)
	}
	return fmt.Sprintf("started without the KMS, the plugin answered Status: %s; well %s after the KMS was back", statuses[len(statuses)-1].answer, seconds(recovered)), nil
}

package conformance

import (
	"context"
	"fmt"
	"slices"
	"time"
)

var restartStories = []check{
	{Info: Info{
		Name: "restart-same-key-id", Level: Must, Source: api + ": the key_id names the KMS's KEK, never a local one", Needs: []string{"restart"},
		About: "The plugin answers the same key_id after a restart.",
	}, run: restartSameKeyID},
	{Info: Info{
		Name: "restart-old-readable", Level: Must, Source: kep, Needs: []string{"restart"},
		About: "What was encrypted before a restart of the plugin is decrypted after it.",
	}, run: restartOldReadable},
	{Info: Info{
		Name: "restart-kms-calls", Level: Advice, Source: envelope + ": there is no single flight in kube-apiserver", Needs: []string{"restart", "kms-calls"},
		About: "50 Decrypts at once of one seed that the plugin has not seen cost at most 10 calls to the KMS.",
	}, unless: []string{"restart-old-readable"}, run: restartKMSCalls},
	{Info: Info{
		Name: "restart-storm", Level: Should, Source: kep + ", Performance; " + ours, Needs: []string{"restart"},
		About: "5,000 Decrypts of different seeds, 100 at once, all succeed right after a start of the plugin.",
	}, unless: []string{"restart-old-readable"}, run: restartStorm},
	{Info: Info{
		Name: "kill", Level: Should, Source: ours + ": the stale socket of a killed plugin", Needs: []string{"kill"},
		About: "After SIGKILL, which leaves its socket's file behind, the plugin comes back at the same endpoint, with the same key_id and all records readable.",
	}, unless: []string{"restart-same-key-id", "restart-old-readable"}, run: killed},
}

// restart is what was encrypted before a restart that the plugin has survived.
type restart struct {
	records      []record
	oldID, newID string
	calls, idle  int // to the KMS, in the first 50 Decrypts at once and in as long a time after them
	up           time.Duration
	err          error // of the first Decrypt
}

func (s *session) restart(ctx context.Context) (*restart, error) {
	return s.restarted.do(func() (*restart, error) {
		r := &restart{}
		var err error
		if r.records, err = s.records(ctx, s.few(5000)); err != nil {
			return nil, err
		}
		r.oldID = r.records[0].KeyId
		if _, err := s.hook(ctx, "restart"); err != nil {
			return nil, err
		}
		if r.up, err = s.becomesWell(ctx); err != nil {
			return nil, err
		}
		if r.newID, err = s.keyID(ctx); err != nil {
			return nil, err
		}
		cold := slices.Repeat(r.records[:1], 50)
		atOnce := func() error { r.err = s.decryptAtOnce(ctx, cold, len(cold)); return nil }
		if s.o.Hooks.KMSCalls == nil {
			return r, atOnce()
		}
		r.calls, r.idle, err = s.kmsCalls(ctx, atOnce)
		return r, err
	})
}

func (s *session) keyID(ctx context.Context) (string, error) {
	st, err := s.conn.Status(ctx)
	return st.GetKeyId(), err
}

func restartSameKeyID(ctx context.Context, s *session) (string, error) {
	r, err := s.restart(ctx)
	if err != nil {
		return "", err
	}
	if r.oldID != r.newID {
		return "", breachf("the key_id was %q before the restart and is %q after it, with no rotation: every record has become stale", r.oldID, r.newID)
	}
	return fmt.Sprintf("%q before and after; well %s after the restart", r.newID, seconds(r.up)), nil
}

func restartOldReadable(ctx context.Context, s *session) (string, error) {
	r, err := s.restart(ctx)
	if err != nil {
		return "", err
	}
	if r.err != nil {
		return "", breachf("after a restart: %w", r.err)
	}
	return "50 Decrypts at once of a seed from before the restart gave it", nil
}

func restartKMSCalls(ctx context.Context, s *session) (string, error) {
	r, err := s.restart(ctx)
	if err != nil {
		return "", err
	}
	seen := fmt.Sprintf("50 Decrypts at once of one seed, right after a restart, caused %d calls to the KMS, and as long a time without them %d", r.calls, r.idle)
	if r.calls > r.idle+10 {
		return "", breachf("%s; let those who wait for the same seed share one (single flight)", seen)
	}
	return seen, nil
}

func restartStorm(ctx context.Context, s *session) (string, error) {
	r, err := s.restart(ctx)
	if err != nil {
		return "", err
	}
	return s.storm(ctx, r.records[1:])
}

func killed(ctx context.Context, s *session) (string, error) {
	defer s.revive(ctx)
	records, err := s.records(ctx, 10)
	if err != nil {
		return "", err
	}
	if _, err := s.hook(ctx, "kill"); err != nil {
		return "", err
	}
	if s.o.Hooks.Restart != nil {
		if _, err := s.hook(ctx, "restart"); err != nil {
			return "", err
		}
	}
	d, err := s.becomesWell(ctx, records...)
	if err != nil {
		return "", breachf("after SIGKILL and a start: %w; remove a socket's file that nobody listens on before listening", err)
	}
	id, err := s.keyID(ctx)
	if err != nil {
		return "", err
	}
	if id != records[0].KeyId {
		return "", breachf("the key_id was %q before SIGKILL and is %q after it, with no rotation", records[0].KeyId, id)
	}
	return fmt.Sprintf("well %s after SIGKILL, with the same key_id and all records readable", seconds(d)), nil
}

package conformance

import (
	"context"
	"errors"
	"fmt"
	"time"
)

var disabledHooks = []string{"disable-key", "enable-key"}

var disabledStories = []check{
	{Info: Info{
		Name: "disabled-status", Level: Should, Source: kep + ", Status; " + ours, Needs: disabledHooks,
		About: "Once the KEK is disabled Status says so, within the time that was given.",
	}, run: disabledStatus},
	{Info: Info{
		Name: "disabled-status-clear", Level: Should, Source: "kubernetes/kubernetes#138950", Needs: disabledHooks,
		About: "It says so with a gRPC error, not with a sick healthz beside a key_id: kube-apiserver would go on writing for ever.",
	}, unless: []string{"disabled-status"}, run: disabledStatusClear},
	{Info: Info{
		Name: "disabled-access", Level: Should, Source: ours + ": to disable a key is how access is ended", Needs: disabledHooks,
		About: "Once the KEK is disabled Encrypt and Decrypt stop, within the time that was given.",
	}, run: disabledAccess},
	{Info: Info{
		Name: "disabled-apiserver", Level: Should, Source: "k8s.io/apiserver: its own code for storage at rest, as a library", Needs: disabledHooks,
		About: "A kube-apiserver that starts while the KEK is disabled is not ready.",
	}, unless: []string{"disabled-access"}, run: disabledAPIServer},
	{Info: Info{
		Name: "enabled-again", Level: Must, Source: kep + ", Status; " + ours, Needs: disabledHooks,
		About: "Once the KEK is enabled again the plugin is well by itself, with the same key_id and all records readable, and so is kube-apiserver.",
	}, run: enabledAgain},
}

// disabling is what was seen while the KEK was disabled. A time of 0 says that
// the method went on working for all the time that it was given.
type disabling struct {
	keyID                    string
	status, encrypt, decrypt time.Duration
	watched                  time.Duration
	lastStatus               attempt
	apiserver                error // why a kube-apiserver that started then was not ready
	recovered                time.Duration
	recovery                 error
	lastKeyID                string
}

func (s *session) keyDisabled(ctx context.Context) (*disabling, error) {
	return s.disabled.do(func() (*disabling, error) {
		defer s.revive(ctx)
		d := &disabling{}
		records, err := s.records(ctx, 5)
		if err != nil {
			return nil, err
		}
		if _, err := s.becomesWell(ctx, records...); err != nil {
			return nil, err
		}
		if d.keyID, err = s.keyID(ctx); err != nil {
			return nil, err
		}
		object, err := s.storedBefore(ctx)
		if err != nil {
			return nil, err
		}

		if _, err := s.hook(ctx, "disable-key"); err != nil {
			return nil, errors.Join(err, s.undo(ctx, "enable-key"))
		}
		s.watchDisabled(ctx, d, records)
		if a, err := s.start(ctx); err == nil {
			d.apiserver = a.ready(ctx)
			a.stop()
		}
		if err := s.undo(ctx, "enable-key"); err != nil {
			return nil, err
		}
		if d.recovered, d.recovery = s.becomesWell(ctx, records...); d.recovery == nil {
			d.lastKeyID, _ = s.keyID(ctx)
			d.recovery = s.startsAnew(ctx, object)
		}
		return d, ctx.Err()
	})
}

// watchDisabled waits until Status, Encrypt and Decrypt have all stopped.
func (s *session) watchDisabled(ctx context.Context, d *disabling, records []record) {
	start := time.Now()
	note := func(at *time.Duration, ok bool) {
		if ok {
			*at = 0
		} else if *at == 0 {
			*at = max(1, time.Since(start))
		}
	}
	for ctx.Err() == nil {
		d.lastStatus = s.askStatus(ctx, start)
		note(&d.status, d.lastStatus.ok)
		_, err := s.encrypt(ctx, s.conn, s.seed())
		note(&d.encrypt, err == nil)
		note(&d.decrypt, s.opens(ctx, s.conn, records[0]) == nil)
		if d.watched = time.Since(start); d.watched > s.o.Within || d.status > 0 && d.encrypt > 0 && d.decrypt > 0 {
			return
		}
		pause(ctx, s.interval())
	}
}

func disabledStatus(ctx context.Context, s *session) (string, error) {
	d, err := s.keyDisabled(ctx)
	if err != nil {
		return "", err
	}
	if d.status == 0 {
		return "", breachf("%s after the KEK was disabled Status still answers ok; ask the KMS now and then, and say what it says", seconds(d.watched))
	}
	return fmt.Sprintf("Status was bad %s after the KEK was disabled: %s", seconds(d.status), d.lastStatus.answer), nil
}

func disabledStatusClear(ctx context.Context, s *session) (string, error) {
	d, err := s.keyDisabled(ctx)
	if err != nil {
		return "", err
	}
	if d.lastStatus.sick {
		return "", breachf("with the KEK disabled %s; kube-apiserver never stops writing under the old seed then: answer a gRPC error", d.lastStatus.answer)
	}
	return "Status answered a gRPC error", nil
}

func disabledAccess(ctx context.Context, s *session) (string, error) {
	d, err := s.keyDisabled(ctx)
	if err != nil {
		return "", err
	}
	for method, at := range map[string]time.Duration{"Encrypt": d.encrypt, "Decrypt": d.decrypt} {
		if at == 0 {
			return "", breachf("%s after the KEK was disabled %s still works; let the KMS's refusal end the use of keys in memory", seconds(d.watched), method)
		}
	}
	return fmt.Sprintf("after the KEK was disabled Encrypt stopped within %s, Decrypt of what was decrypted before within %s", seconds(d.encrypt), seconds(d.decrypt)), nil
}

func disabledAPIServer(ctx context.Context, s *session) (string, error) {
	d, err := s.keyDisabled(ctx)
	if err != nil {
		return "", err
	}
	if d.apiserver == nil {
		return "", breachf("a kube-apiserver that started while the KEK was disabled was ready")
	}
	return fmt.Sprintf("a kube-apiserver that started while the KEK was disabled was not ready: %v", d.apiserver), nil
}

func enabledAgain(ctx context.Context, s *session) (string, error) {
	d, err := s.keyDisabled(ctx)
	if err != nil {
		return "", err
	}
	if d.recovery != nil {
		return "", breachf("once the KEK was enabled again: %w; it must not need a restart", d.recovery)
	}
	if d.lastKeyID != d.keyID {
		return "", breachf("the key_id was %q before the KEK was disabled and is %q after it was enabled, with no rotation", d.keyID, d.lastKeyID)
	}
	return fmt.Sprintf("well %s after the KEK was enabled, with the same key_id and all records readable, for kube-apiserver too", seconds(d.recovered)), nil
}

package conformance

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// hook changes the world. Where that fails the story cannot be told, and Check
// says so in its error.
func (s *session) hook(ctx context.Context, name string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, max(s.o.Within, 2*time.Minute))
	defer cancel()
	output, err := s.o.Hooks.byName()[name](ctx)
	if err != nil {
		err = fmt.Errorf("hook %s: %w: %s", name, err, printable(strings.TrimSpace(output)))
		s.hookErrs = append(s.hookErrs, err)
		return output, skip(err.Error())
	}
	return output, nil
}

// undo calls a hook that gives back what a story took, also where ctx has ended.
func (s *session) undo(ctx context.Context, name string) error {
	_, err := s.hook(context.WithoutCancel(ctx), name)
	return err
}

// interval is how often a story looks: 600 times within the time that the
// plugin has.
func (s *session) interval() time.Duration {
	return min(max(s.o.Within/600, 20*time.Millisecond), time.Second)
}

// well tells whether Status is good, and Encrypt and Decrypt of all records work.
func (s *session) well(ctx context.Context, c *client, records ...record) error {
	st, err := c.Status(ctx)
	if err != nil {
		return err
	}
	if st.Healthz != "ok" || st.KeyId == "" {
		return fmt.Errorf("Status answered healthz %q, key_id %q", st.Healthz, st.KeyId)
	}
	rec, err := s.encrypt(ctx, c, s.seed())
	if err != nil {
		return err
	}
	for _, r := range append(records, rec) {
		if err := s.opens(ctx, c, r); err != nil {
			return err
		}
	}
	return nil
}

// becomesWell waits until the plugin is well, and returns how long that took.
// Where it does not become well, no later check has anything to say.
func (s *session) becomesWell(ctx context.Context, records ...record) (time.Duration, error) {
	start := time.Now()
	for {
		err := s.well(ctx, s.conn, records...)
		if err == nil {
			return time.Since(start), nil
		}
		if time.Since(start) > s.o.Within {
			s.broken = err
			return 0, breachf("not well again after %s: %w", s.o.Within, err)
		}
		if err := pause(ctx, s.interval()); err != nil {
			return 0, err
		}
	}
}

// revive starts the plugin anew where it can be, so that the next story finds it
// well whatever the last one did.
func (s *session) revive(ctx context.Context) {
	if s.broken == nil || s.o.Hooks.Restart == nil {
		return
	}
	if _, err := s.hook(ctx, "restart"); err != nil {
		return
	}
	if _, err := s.becomesWell(ctx); err == nil {
		s.broken = nil
	}
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }

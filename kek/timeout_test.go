package kek_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kube-kek/kube-kek/kek"
	"github.com/kube-kek/kube-kek/kek/kektest"
)

func TestTimeout(t *testing.T) {
	const limit = time.Second
	for name, test := range map[string]struct {
		takes  time.Duration // by the home
		caller time.Duration // the caller's own limit, 0 for none
		want   time.Duration
		fails  bool
	}{
		"a call within the limit is let be":    {takes: 999 * time.Millisecond, want: 999 * time.Millisecond},
		"a call over the limit ends at it":     {takes: time.Hour, want: limit, fails: true},
		"the caller's limit holds if shorter":  {takes: time.Hour, caller: 300 * time.Millisecond, want: 300 * time.Millisecond, fails: true},
		"the caller's limit is not lengthened": {takes: time.Hour, caller: time.Minute, want: limit, fails: true},
	} {
		for _, op := range []kek.Op{kek.OpCurrent, kek.OpWrap, kek.OpUnwrap} {
			t.Run(name+": "+string(op), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					f := kektest.New(kektest.Config{})
					call := operations(t, f, kek.Timeout(f, limit))[op]
					f.SetDelay(test.takes)
					ctx := t.Context()
					if test.caller > 0 {
						var cancel context.CancelFunc
						ctx, cancel = context.WithTimeout(ctx, test.caller)
						defer cancel()
					}
					start := time.Now()
					err := call(ctx)
					if took := time.Since(start); took != test.want {
						t.Errorf("took %v, want %v", took, test.want)
					}
					if (err != nil) != test.fails || test.fails && kek.KindOf(err) != kek.Unavailable {
						t.Errorf("error %v, want one: %v, that is %v", err, test.fails, kek.Unavailable)
					}
				})
			})
		}
	}
}

func TestEachCallHasTheWholeTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := kektest.New(kektest.Config{})
		f.SetDelay(900 * time.Millisecond)
		p := kek.Timeout(f, time.Second)
		for range 3 {
			if _, err := p.Current(t.Context()); err != nil {
				t.Errorf("Current: %v", err)
			}
		}
	})
}

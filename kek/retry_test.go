package kek_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kube-kek/kube-kek/kek"
	"github.com/kube-kek/kube-kek/kek/kektest"
)

var decorated = []kek.Op{kek.OpCurrent, kek.OpWrap, kek.OpUnwrap}

// retrying runs test for each operation of a Retry, in a bubble. Attempts are
// those that were made by call.
func retrying(t *testing.T, test func(t *testing.T, f *kektest.Provider, call func(context.Context) error, attempts func() []kektest.Call)) {
	for _, op := range decorated {
		t.Run(string(op), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := kektest.New(kektest.Config{})
				call := operations(t, f, kek.Retry(f))[op]
				before := f.Calls()
				test(t, f, call, func() []kektest.Call { return f.Log()[before:] })
			})
		})
	}
}

func TestRetryTriesATemporaryFailureAgain(t *testing.T) {
	for _, kind := range []kek.Kind{kek.Unavailable, kek.Throttled} {
		t.Run(kind.String(), func(t *testing.T) {
			retrying(t, func(t *testing.T, f *kektest.Provider, call func(context.Context) error, attempts func() []kektest.Call) {
				f.FailTimes(2, kind)
				if err := call(t.Context()); err != nil {
					t.Errorf("after two failures: %v", err)
				}
				if got := len(attempts()); got != 3 {
					t.Errorf("%d attempts, want 3", got)
				}
			})
		})
	}
}

func TestRetryDoesNotTryAgainWhatWillNotChange(t *testing.T) {
	for _, kind := range kinds {
		if kind.Temporary() {
			continue
		}
		t.Run(kind.String(), func(t *testing.T) {
			retrying(t, func(t *testing.T, f *kektest.Provider, call func(context.Context) error, attempts func() []kektest.Call) {
				f.Fail(kind)
				start := time.Now()
				if err := call(t.Context()); kek.KindOf(err) != kind {
					t.Errorf("got %v, want %v", err, kind)
				}
				if got := len(attempts()); got != 1 || time.Since(start) != 0 {
					t.Errorf("%d attempts in %v, want one at once", got, time.Since(start))
				}
			})
		})
	}
}

func TestRetryWithoutADeadlineTriesThreeTimes(t *testing.T) {
	retrying(t, func(t *testing.T, f *kektest.Provider, call func(context.Context) error, attempts func() []kektest.Call) {
		f.Fail(kek.Unavailable)
		if err := call(t.Context()); kek.KindOf(err) != kek.Unavailable {
			t.Errorf("got %v, want %v", err, kek.Unavailable)
		}
		if got := len(attempts()); got != 3 {
			t.Errorf("%d attempts, want 3", got)
		}
	})
}

// The pauses grow by half from 100 ms to 1 s, each with a jitter of half.
func TestRetryPauses(t *testing.T) {
	retrying(t, func(t *testing.T, f *kektest.Provider, call func(context.Context) error, attempts func() []kektest.Call) {
		f.Fail(kek.Unavailable)
		const limit = 20 * time.Second
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		start := time.Now()
		err := call(ctx)
		if errors.Is(err, context.DeadlineExceeded) || kek.KindOf(err) != kek.Unavailable {
			t.Errorf("got %v, want the last attempt's error", err)
		}
		log := attempts()
		base := 100 * time.Millisecond
		for i := range log[1:] {
			pause := log[i+1].Time.Sub(log[i].Time)
			if pause < base/2 || pause > base*3/2+time.Millisecond {
				t.Errorf("pause %d is %v, want %v give or take half", i+1, pause, base)
			}
			base = min(base*3/2, time.Second)
		}
		if took := time.Since(start); took > limit || took < limit-base*3/2 {
			t.Errorf("it took %v of the caller's %v", took, limit)
		}
	})
}

func TestRetryObeysRetryAfter(t *testing.T) {
	retrying(t, func(t *testing.T, f *kektest.Provider, call func(context.Context) error, attempts func() []kektest.Call) {
		f.SetRetryAfter(700 * time.Millisecond)
		f.FailTimes(2, kek.Throttled)
		ctx, cancel := context.WithTimeout(t.Context(), 2500*time.Millisecond)
		defer cancel()
		start := time.Now()
		if err := call(ctx); err != nil {
			t.Errorf("after two failures: %v", err)
		}
		if took := time.Since(start); took != 1400*time.Millisecond || len(attempts()) != 3 {
			t.Errorf("%d attempts in %v, want 3 in 1.4s", len(attempts()), took)
		}
	})
}

func TestRetryDoesNotBeginAPauseThatEndsBehindTheDeadline(t *testing.T) {
	retrying(t, func(t *testing.T, f *kektest.Provider, call func(context.Context) error, attempts func() []kektest.Call) {
		f.SetRetryAfter(3 * time.Second)
		f.Fail(kek.Throttled)
		ctx, cancel := context.WithTimeout(t.Context(), 2500*time.Millisecond)
		defer cancel()
		start := time.Now()
		err := call(ctx)
		var e *kek.Error
		if !errors.As(err, &e) || e.Kind != kek.Throttled || e.RetryAfter != 3*time.Second {
			t.Errorf("got %v, want %v with its RetryAfter", err, kek.Throttled)
		}
		if took := time.Since(start); took != 0 || len(attempts()) != 1 {
			t.Errorf("%d attempts in %v, want one at once", len(attempts()), took)
		}
	})
}

func TestRetryReturnsTheLastAttemptsErrorWhenItsContextEnds(t *testing.T) {
	for name, ends := range map[string]struct {
		after time.Duration
		want  int // attempts
	}{
		"beforehand": {0, 1},
		"in a pause": {30 * time.Millisecond, 1},
	} {
		t.Run(name, func(t *testing.T) {
			retrying(t, func(t *testing.T, f *kektest.Provider, call func(context.Context) error, attempts func() []kektest.Call) {
				f.Fail(kek.Throttled)
				ctx, cancel := context.WithCancel(t.Context())
				if ends.after == 0 {
					cancel()
				}
				time.AfterFunc(ends.after, cancel)
				start := time.Now()
				err := call(ctx)
				if _, ok := err.(*kek.Error); !ok || !kek.KindOf(err).Temporary() {
					t.Errorf("got %v (a %T), want the provider's own error", err, err)
				}
				if took := time.Since(start); took != ends.after || len(attempts()) != ends.want {
					t.Errorf("%d attempts in %v, want %d in %v", len(attempts()), took, ends.want, ends.after)
				}
			})
		})
	}
}

// What the daemon does: attempts that hang are ended and tried again, and all of
// it ends before kube-apiserver's 3 s.
func TestRetryOfTimeoutStaysWithinTheCall(t *testing.T) {
	for _, op := range decorated {
		t.Run(string(op), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := kektest.New(kektest.Config{})
				call := operations(t, f, kek.Retry(kek.Timeout(f, time.Second)))[op]
				before := f.Calls()
				release := f.Hang()
				ctx, cancel := context.WithTimeout(t.Context(), 2500*time.Millisecond)
				defer cancel()
				start := time.Now()
				if err := call(ctx); kek.KindOf(err) != kek.Unavailable {
					t.Errorf("got %v, want %v", err, kek.Unavailable)
				}
				took, attempts := time.Since(start), f.Calls()-before
				if took > 2500*time.Millisecond || took < 2*time.Second || attempts < 2 || attempts > 3 {
					t.Errorf("%d attempts in %v, want 2 or 3 and at most 2.5s", attempts, took)
				}
				release()

				f.SetDelay(3*time.Second, op)
				time.AfterFunc(500*time.Millisecond, func() { f.Heal() })
				ctx, cancel = context.WithTimeout(t.Context(), 2500*time.Millisecond)
				defer cancel()
				if err := call(ctx); err != nil {
					t.Errorf("with a home that is well again after half a second: %v", err)
				}
			})
		})
	}
}

package kek

import (
	"context"
	"errors"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// Retry returns p with its Temporary failures tried again, after a growing pause
// (100 ms to 1 s, ±50 %) or the home's own Retry-After, for as long as the
// caller's context has time for another attempt. The error is that of the last
// attempt, never a bare context error.
//
// Under a context without a deadline there are three attempts within a minute.
func Retry(p Provider) Provider { return &retryProvider{decorator{p}} }

type retryProvider struct{ decorator }

func (r *retryProvider) Current(ctx context.Context) (KeyRef, error) {
	return retry(ctx, func() (KeyRef, error) { return r.Provider.Current(ctx) })
}

func (r *retryProvider) Wrap(ctx context.Context, plaintext []byte) (Wrapped, error) {
	return retry(ctx, func() (Wrapped, error) { return r.Provider.Wrap(ctx, plaintext) })
}

func (r *retryProvider) Unwrap(ctx context.Context, w Wrapped) ([]byte, error) {
	return retry(ctx, func() ([]byte, error) { return r.Provider.Unwrap(ctx, w) })
}

func retry[T any](ctx context.Context, call func() (T, error)) (T, error) {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval = 100*time.Millisecond, time.Second
	opts := []backoff.RetryOption{backoff.WithBackOff(b)}
	if deadline, ok := ctx.Deadline(); ok {
		// A pause that ends behind the deadline is not begun: the caller hears
		// now what it would otherwise hear later.
		opts = append(opts, backoff.WithMaxElapsedTime(max(time.Until(deadline), time.Nanosecond)))
	} else {
		opts = append(opts, backoff.WithMaxTries(3), backoff.WithMaxElapsedTime(time.Minute))
	}

	var last error
	got, err := backoff.Retry(ctx, func() (T, error) {
		got, err := call()
		last = err
		switch {
		case err == nil:
			return got, nil
		case !KindOf(err).Temporary():
			return got, backoff.Permanent(err)
		}
		var e *Error
		if errors.As(err, &e) && e.RetryAfter > 0 {
			return got, &backoff.RetryAfterError{Duration: e.RetryAfter}
		}
		return got, err
	}, opts...)
	if err != nil {
		return got, last
	}
	return got, nil
}

package kek

import (
	"context"
	"time"
)

// Timeout returns p with a limit on each single call. A call that hits it is
// Unavailable, and so may be tried again while the caller's own time lasts.
func Timeout(p Provider, limit time.Duration) Provider {
	return &timeoutProvider{decorator{p}, limit}
}

type timeoutProvider struct {
	decorator
	limit time.Duration
}

func (t *timeoutProvider) Current(ctx context.Context) (KeyRef, error) {
	ctx, cancel := context.WithTimeout(ctx, t.limit)
	defer cancel()
	return t.Provider.Current(ctx)
}

func (t *timeoutProvider) Wrap(ctx context.Context, plaintext []byte) (Wrapped, error) {
	ctx, cancel := context.WithTimeout(ctx, t.limit)
	defer cancel()
	return t.Provider.Wrap(ctx, plaintext)
}

func (t *timeoutProvider) Unwrap(ctx context.Context, w Wrapped) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, t.limit)
	defer cancel()
	return t.Provider.Unwrap(ctx, w)
}

package kek

import (
	"context"
	"sync"
)

// Purpose tells why a provider is called, so that metrics can tell the load that
// kube-apiserver causes from our own upkeep.
type Purpose string

// The purposes. A call is a Request unless its context says otherwise.
const (
	Request Purpose = "request" // an Encrypt or Decrypt waits for it
	Probe   Purpose = "probe"   // the background renewal of leases
)

type purposeKey struct{}

// WithPurpose marks the calls made under ctx.
func WithPurpose(ctx context.Context, p Purpose) context.Context {
	return context.WithValue(ctx, purposeKey{}, p)
}

// PurposeOf returns the purpose of the calls made under ctx.
func PurposeOf(ctx context.Context) Purpose {
	if p, ok := ctx.Value(purposeKey{}).(Purpose); ok {
		return p
	}
	return Request
}

// Calls collects the homes' own request IDs, for the audit log. The zero value
// is ready; it may be used concurrently.
type Calls struct {
	mu  sync.Mutex
	ids []string
}

type callsKey struct{}

// WithCalls returns a context under which providers report to c.
func WithCalls(ctx context.Context, c *Calls) context.Context {
	return context.WithValue(ctx, callsKey{}, c)
}

// RecordCall is called by a provider with the request ID that its home gave to a
// call, successful or not. Without a collector in ctx it does nothing, and an
// empty ID is not kept.
func RecordCall(ctx context.Context, requestIDs ...string) {
	c, ok := ctx.Value(callsKey{}).(*Calls)
	if !ok {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, id := range requestIDs {
		if id != "" {
			c.ids = append(c.ids, id)
		}
	}
}

// IDs returns the request IDs collected so far, in order.
func (c *Calls) IDs() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]string(nil), c.ids...)
}

package kek_test

import (
	"context"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/kube-kek/kube-kek/kek"
	"github.com/kube-kek/kube-kek/kek/kektest"
)

// operations calls each operation of p that decorators decorate, with a key and
// a wrap of it made beforehand.
func operations(t *testing.T, f *kektest.Provider, p kek.Provider) map[kek.Op]func(context.Context) error {
	t.Helper()
	w, err := f.Wrap(t.Context(), []byte("key"))
	if err != nil {
		t.Fatal(err)
	}
	return map[kek.Op]func(context.Context) error{
		kek.OpCurrent: func(ctx context.Context) error { _, err := p.Current(ctx); return err },
		kek.OpWrap:    func(ctx context.Context) error { _, err := p.Wrap(ctx, []byte("key")); return err },
		kek.OpUnwrap:  func(ctx context.Context) error { _, err := p.Unwrap(ctx, w); return err },
	}
}

func stack(f kek.Provider) kek.Provider {
	return kek.Retry(kek.Metrics(kek.Timeout(f, time.Second), "fake", kek.NewCallMetrics(prometheus.NewRegistry())))
}

func TestAsSeesThroughDecorators(t *testing.T) {
	f := kektest.New(kektest.Config{ID: "key"})
	p := stack(f)

	identifier, ok := kek.As[kek.Identifier](p)
	if !ok {
		t.Fatalf("no Identifier below the decorators")
	}
	if got, err := identifier.Identity(t.Context()); err != nil || got != "fake:tester" {
		t.Errorf("Identity: %q, %v", got, err)
	}
	informer, ok := kek.As[kek.Informer](p)
	if !ok {
		t.Fatalf("no Informer below the decorators")
	}
	if _, err := p.Current(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := informer.Facts().Key.ID; got != "key" {
		t.Errorf("Facts are of %q", got)
	}
	if got, ok := kek.As[*kektest.Provider](p); !ok || got != f {
		t.Errorf("the provider itself is not found")
	}
	if got, ok := kek.As[kek.Provider](p); !ok || got != p {
		t.Errorf("As does not begin with the outermost")
	}
}

func TestAsFindsNothing(t *testing.T) {
	if got, ok := kek.As[interface{ Nothing() }](stack(kektest.New(kektest.Config{}))); ok {
		t.Errorf("found %T", got)
	}
	if got, ok := kek.As[kek.Informer](nil); ok {
		t.Errorf("found %T in no provider", got)
	}
}

func TestDecoratorsPassOn(t *testing.T) {
	f := kektest.New(kektest.Config{})
	p := stack(f)
	var calls kek.Calls
	ctx := kek.WithCalls(kek.WithPurpose(t.Context(), kek.Probe), &calls)
	w, err := p.Wrap(ctx, []byte("key"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := p.Unwrap(ctx, w); err != nil || string(got) != "key" {
		t.Errorf("Unwrap: %q, %v", got, err)
	}
	for _, c := range f.Log() {
		if c.Purpose != kek.Probe {
			t.Errorf("%s came as %q, want %q", c.Op, c.Purpose, kek.Probe)
		}
	}
	if got := calls.IDs(); len(got) != 2 {
		t.Errorf("request IDs: %v, want 2", got)
	}
	if err := p.Close(); err != nil || f.Closed() != 1 {
		t.Errorf("Close: %v; it came %d times, want once", err, f.Closed())
	}
}

package kek_test

import (
	"strconv"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kube-kek/kube-kek/kek"
)

func TestACallIsARequestUnlessItsContextSaysOtherwise(t *testing.T) {
	ctx := t.Context()
	if got := kek.PurposeOf(ctx); got != kek.Request {
		t.Errorf("without a word: %q, want %q", got, kek.Request)
	}
	probe := kek.WithPurpose(ctx, kek.Probe)
	if got := kek.PurposeOf(probe); got != kek.Probe {
		t.Errorf("of a probe: %q, want %q", got, kek.Probe)
	}
	if got := kek.PurposeOf(kek.WithPurpose(probe, kek.Request)); got != kek.Request {
		t.Errorf("the inner word: %q, want %q", got, kek.Request)
	}
}

func TestCallsCollectRequestIDsInOrder(t *testing.T) {
	var calls kek.Calls
	ctx := kek.WithCalls(t.Context(), &calls)
	if got := calls.IDs(); len(got) != 0 {
		t.Errorf("before any call: %v", got)
	}
	kek.RecordCall(t.Context(), "nobody listens")
	kek.RecordCall(ctx, "one")
	kek.RecordCall(ctx, "")
	kek.RecordCall(kek.WithPurpose(ctx, kek.Probe), "two")
	kek.RecordCall(ctx, "three", "", "four")
	got := calls.IDs()
	if diff := cmp.Diff([]string{"one", "two", "three", "four"}, got); diff != "" {
		t.Errorf("IDs (-want +got):\n%s", diff)
	}
	got[0] = "changed"
	if calls.IDs()[0] != "one" {
		t.Errorf("the caller of IDs can change them")
	}
}

func TestCallsMayBeRecordedConcurrently(t *testing.T) {
	var calls kek.Calls
	ctx := kek.WithCalls(t.Context(), &calls)
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			kek.RecordCall(ctx, strconv.Itoa(i))
			calls.IDs()
		})
	}
	wg.Wait()
	if got := len(calls.IDs()); got != 64 {
		t.Errorf("%d IDs were kept, want 64", got)
	}
}

package bench_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kube-kek/kube-kek/plugin/bench"
)

// The baseline is a child process; here it is this test binary again.
const childVar = "KUBE_KEK_BENCH_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childVar) == "" {
		os.Setenv(childVar, "1") // for the children
		os.Exit(m.Run())
	}
	if err := bench.ServeBaseline(os.Stdin); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func TestALoadMakesExactlySoManyCallsWithSoManyCallersAtOnce(t *testing.T) {
	var calls, now, most atomic.Int64
	together := make(chan struct{})
	s, err := bench.Load{Callers: 4, Calls: 10}.Run(t.Context(), func(context.Context) error {
		calls.Add(1)
		if now.Add(1) == 4 {
			most.Store(4)
			close(together)
		}
		<-together // nobody goes on before four are here
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if calls.Load() != 10 || len(s.Took) != 10 || most.Load() != 4 {
		t.Errorf("%d calls, %d times, %d at once; want 10, 10, 4", calls.Load(), len(s.Took), most.Load())
	}
	if !slices.IsSorted(s.Took) {
		t.Error("the times are not sorted")
	}
}

func TestALoadEndsWithTheFirstError(t *testing.T) {
	broken := errors.New("broken")
	var calls atomic.Int64
	_, err := bench.Load{Callers: 2, Calls: 1000}.Run(t.Context(), func(ctx context.Context) error {
		if calls.Add(1) == 3 {
			return broken
		}
		return ctx.Err()
	})
	if !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
}

func TestComparedRoundsAddUpToTheCallsAskedFor(t *testing.T) {
	var p, b atomic.Int64
	count := func(n *atomic.Int64) bench.Call {
		return func(context.Context) error { n.Add(1); return nil }
	}
	c, err := bench.Load{Callers: 3, Calls: 100}.Compare(t.Context(), 7, count(&p), count(&b))
	if err != nil {
		t.Fatal(err)
	}
	if p.Load() != 100 || b.Load() != 100 || len(c.Plugin.Took) != 100 || len(c.Baseline.Took) != 100 {
		t.Errorf("plugin %d (%d times), baseline %d (%d times); want 100 each", p.Load(), len(c.Plugin.Took), b.Load(), len(c.Baseline.Took))
	}
}

func TestPercentilesAreTimesThatWereSeen(t *testing.T) {
	var s bench.Sample
	for i := range 1000 {
		s.Took = append(s.Took, time.Duration(i+1)*time.Millisecond)
	}
	got := map[float64]time.Duration{}
	want := map[float64]time.Duration{
		0.01: time.Millisecond, 50: 500 * time.Millisecond, 90: 900 * time.Millisecond,
		99: 990 * time.Millisecond, 99.9: 999 * time.Millisecond, 100: time.Second,
	}
	for p := range want {
		got[p] = s.Percentile(p)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	one := bench.Sample{Took: []time.Duration{time.Second}}
	if one.Percentile(50) != time.Second || (bench.Sample{}).Percentile(50) != 0 {
		t.Error("one time is every percentile, and none is 0")
	}
}

// plugin serves a bare service as if it were a plugin, and returns its endpoint.
func plugin(t *testing.T) *bench.Baseline {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	b, err := bench.StartBaseline(t.Context(), bench.Shape{KeyID: 40, Ciphertext: 61, Annotations: map[string]int{"a.example": 100}}, self)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

func TestEveryOperationIsMeasuredAtEveryConcurrency(t *testing.T) {
	p := plugin(t)
	self, _ := os.Executable()
	var steps []string
	restarts := 0
	r, err := bench.Run(t.Context(), p.Endpoint(), bench.Options{
		Concurrency: []int{1, 4}, Requests: 40, Seeds: 20, Rounds: 2, Baseline: []string{self},
		Restart: func(ctx context.Context) error {
			restarts++
			return p.Restart(ctx)
		},
		Progress: func(what string, n, of int) { steps = append(steps, fmt.Sprintf("%d/%d %s", n, of, what)) },
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"1/9 Status, 1 at once", "2/9 Status, 4 at once", "3/9 Encrypt, 1 at once", "4/9 Encrypt, 4 at once",
		"5/9 Decrypt, warm, 1 at once", "6/9 Decrypt, warm, 4 at once", "7/9 Decrypt, cold, 1 at once", "8/9 Decrypt, cold, 4 at once",
		"9/9 restart storm, 4 at once",
	}
	if diff := cmp.Diff(want, steps); diff != "" {
		t.Errorf("steps (-want +got)\n%s", diff)
	}
	type size struct {
		Operation                 string
		Callers, Plugin, Baseline int
	}
	var got []size
	for _, res := range r.Results {
		got = append(got, size{res.Operation, res.Callers, len(res.Plugin.Took), len(res.Baseline.Took)})
		if res.P50 <= 0 || res.Throughput <= 0 {
			t.Errorf("%s with %d callers has no ratio", res.Operation, res.Callers)
		}
	}
	if diff := cmp.Diff([]size{
		{bench.OpStatus, 1, 40, 40}, {bench.OpStatus, 4, 40, 40}, {bench.OpEncrypt, 1, 40, 40}, {bench.OpEncrypt, 4, 40, 40},
		{bench.OpWarmDecrypt, 1, 40, 40}, {bench.OpWarmDecrypt, 4, 40, 40}, {bench.OpColdDecrypt, 1, 20, 20}, {bench.OpColdDecrypt, 4, 20, 20},
	}, got); diff != "" {
		t.Errorf("results (-want +got)\n%s", diff)
	}
	if r.Storm == nil || len(r.Storm.Plugin.Took) != 20 || len(r.Storm.Baseline.Took) != 20 || restarts != 3 {
		t.Errorf("storm %+v, %d restarts; want 20 seeds of each, 3 restarts", r.Storm, restarts)
	}
	if want := 40 + 61 + len("a.example") + 100; r.Overhead != want {
		t.Errorf("overhead %d, want %d", r.Overhead, want)
	}
}

func TestABaselineThatDoesNotStartSaysWhy(t *testing.T) {
	_, err := bench.StartBaseline(t.Context(), bench.Shape{}, "/bin/sh", "-c", "echo no luck >&2; exit 1")
	if err == nil || !strings.Contains(err.Error(), "no luck") {
		t.Errorf("got %v", err)
	}
}

func TestABaselineEndsWithItsInput(t *testing.T) {
	in, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(w, `{"socket":%q,"shape":{"keyID":3}}`, t.TempDir()+"/s")
	w.Close()
	if err := bench.ServeBaseline(in); err != nil {
		t.Errorf("got %v", err)
	}
}

package bench_test

import (
	"bytes"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/kube-kek/kube-kek/plugin/bench"
)

// spread makes a sample with n calls at each time.
func spread(n map[time.Duration]int) bench.Sample {
	var s bench.Sample
	for d, calls := range n {
		s.Took = append(s.Took, slices.Repeat([]time.Duration{d}, calls)...)
	}
	slices.Sort(s.Took)
	return s
}

func TestTheHistogramIsDrawnAsInTheGoldenFile(t *testing.T) {
	var out bytes.Buffer
	ours := spread(map[time.Duration]int{90 * time.Microsecond: 200, 120 * time.Microsecond: 500, 180 * time.Microsecond: 250, 260 * time.Microsecond: 49, 40 * time.Millisecond: 1})
	bare := spread(map[time.Duration]int{80 * time.Microsecond: 700, 130 * time.Microsecond: 300})
	if err := bench.Draw(&out, 72, bench.Series{Name: "plugin", Sample: ours}, bench.Series{Name: "bare", Sample: bare}); err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile("testdata/histogram.golden")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), out.String()); diff != "" {
		t.Errorf("(-want +got)\n%s\nthe whole:\n%s", diff, out.String())
	}
	for line := range strings.Lines(out.String()) {
		if n := utf8.RuneCountInString(strings.TrimSpace(line)); n > 72 {
			t.Errorf("%d columns: %s", n, line)
		}
	}
}

func TestNothingIsDrawnOfNoCalls(t *testing.T) {
	var out bytes.Buffer
	if err := bench.Draw(&out, 80, bench.Series{Name: "plugin"}); err != nil || out.Len() > 0 {
		t.Errorf("%v %q", err, out.String())
	}
}

func TestBucketsHoldEachCallOnce(t *testing.T) {
	got := spread(map[time.Duration]int{time.Nanosecond: 1, time.Microsecond: 1, 1001 * time.Nanosecond: 2, 2 * time.Microsecond: 1}).Buckets()
	want := []bench.Bucket{{time.Microsecond, 2}, {1500 * time.Nanosecond, 2}, {2 * time.Microsecond, 1}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if got := spread(map[time.Duration]int{48 * time.Hour: 1}).Buckets(); len(got) != 1 || got[0].Calls != 1 {
		t.Errorf("a call of two days is in %v", got)
	}
}

func TestTimesHaveThreeDigits(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0µs", 980 * time.Nanosecond: "0.98µs", 1500 * time.Nanosecond: "1.5µs", 98249 * time.Nanosecond: "98.2µs", 100 * time.Microsecond: "100µs",
		999600 * time.Nanosecond: "1ms", 1054 * time.Microsecond: "1.05ms", 412 * time.Millisecond: "412ms", time.Second: "1s", 90 * time.Second: "90s",
	} {
		if got := bench.Short(d); got != want {
			t.Errorf("%d ns: %s, want %s", d, got, want)
		}
	}
}

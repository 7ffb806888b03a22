// Package bench measures a KMS v2 plugin through its socket: how long calls take
// and how many it answers, against a bare gRPC service that answers as many bytes
// and does nothing else. The bare service runs as a process of its own on the same
// machine in the same minute, so the ratio of the two says what the plugin adds,
// whatever the machine is.
package bench

import (
	"context"
	"fmt"
	"math"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// CallTimeout is how long each call may take: kube-apiserver's default.
const CallTimeout = 3 * time.Second

// Call makes one call of one method. It may be called concurrently.
type Call func(ctx context.Context) error

// Load is how much is asked of a service.
type Load struct {
	Callers int // that call at once, each its next when its last was answered; over one connection, as kube-apiserver has
	Calls   int // in all
}

// Run makes the calls. The first that fails or takes longer than [CallTimeout]
// ends it with that error.
func (l Load) Run(ctx context.Context, call Call) (Sample, error) {
	return l.run(ctx, func(ctx context.Context) (time.Duration, error) { return timed(ctx, call) })
}

// run makes calls that tell themselves how long they took.
func (l Load) run(ctx context.Context, call func(context.Context) (time.Duration, error)) (Sample, error) {
	g, ctx := errgroup.WithContext(ctx)
	var left atomic.Int64
	left.Store(int64(l.Calls))
	took := make([][]time.Duration, l.Callers)
	start := time.Now()
	for i := range took {
		g.Go(func() error {
			var own []time.Duration
			for left.Add(-1) >= 0 {
				d, err := call(ctx)
				if err != nil {
					return err
				}
				own = append(own, d)
			}
			took[i] = own
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return Sample{}, err
	}
	return newSample(slices.Concat(took...), time.Since(start)), nil
}

func timed(ctx context.Context, call Call) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, CallTimeout)
	defer cancel()
	start := time.Now()
	err := call(ctx)
	return time.Since(start), err
}

// Sample is what calls took.
type Sample struct {
	Took    []time.Duration // of each call, sorted
	Elapsed time.Duration   // from the first call's start to the last one's end
}

func newSample(took []time.Duration, elapsed time.Duration) Sample {
	slices.Sort(took)
	return Sample{took, elapsed}
}

// Percentile returns the time within which p percent of the calls were answered
// (0 < p ≤ 100; 100 is the longest), by nearest rank: a time that was really
// seen. It is 0 of an empty sample.
func (s Sample) Percentile(p float64) time.Duration {
	if len(s.Took) == 0 {
		return 0
	}
	rank := int(math.Ceil(p*float64(len(s.Took))/100 - 1e-6)) // 99.9 % of 1000 is no more than 999
	return s.Took[max(rank, 1)-1]
}

// Throughput returns calls per second.
func (s Sample) Throughput() float64 {
	if s.Elapsed <= 0 {
		return 0
	}
	return float64(len(s.Took)) / s.Elapsed.Seconds()
}

// Comparison is what a plugin and the baseline took for the same.
type Comparison struct {
	Plugin, Baseline Sample // of all rounds

	// Ratios of the plugin to the baseline, each the median over the rounds, so
	// that a round in which the machine did something else does not count.
	P50, Throughput float64
}

// Compare loads both by turns in so many rounds, so that both meet the same
// weather, with the calls of each divided among the rounds.
func (l Load) Compare(ctx context.Context, rounds int, plugin, baseline Call) (Comparison, error) {
	var p, b []Sample
	for i := range rounds {
		turn := Load{Callers: l.Callers, Calls: share(l.Calls, rounds, i)}
		bs, err := turn.Run(ctx, baseline)
		if err != nil {
			return Comparison{}, fmt.Errorf("calling the bare service: %w", err)
		}
		ps, err := turn.Run(ctx, plugin)
		if err != nil {
			return Comparison{}, err
		}
		p, b = append(p, ps), append(b, bs)
	}
	return compared(p, b), nil
}

// share is the i-th of n parts of all, which differ by one at most.
func share(all, n, i int) int { return all*(i+1)/n - all*i/n }

// compared puts rounds together.
func compared(plugin, baseline []Sample) Comparison {
	var p50, throughput []float64
	for i, p := range plugin {
		b := baseline[i]
		p50 = append(p50, ratio(p.Percentile(50).Seconds(), b.Percentile(50).Seconds()))
		throughput = append(throughput, ratio(p.Throughput(), b.Throughput()))
	}
	return Comparison{Plugin: merge(plugin), Baseline: merge(baseline), P50: median(p50), Throughput: median(throughput)}
}

func merge(rounds []Sample) Sample {
	var took []time.Duration
	var elapsed time.Duration
	for _, s := range rounds {
		took = append(took, s.Took...)
		elapsed += s.Elapsed
	}
	return newSample(took, elapsed)
}

// ratio is 0 where there is nothing to compare with.
func ratio(a, b float64) float64 {
	if b <= 0 {
		return 0
	}
	return a / b
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	slices.Sort(v)
	return v[len(v)/2]
}

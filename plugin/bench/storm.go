package bench

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	v2 "k8s.io/kms/apis/v2"
)

// Storm is what a restart costs: every seed that kube-apiserver knows is asked for
// at once, from the moment that the plugin was told to start.
type Storm struct {
	Seeds   int
	Callers int

	Plugin, Baseline StormResult
}

// StormResult is one service's storm.
type StormResult struct {
	First  time.Duration // from the end of the restart command to the first seed
	All    time.Duration // to the last one
	Failed int           // calls that failed and were made again
	Sample               // of the calls that gave a seed, the wait for the socket included
}

// stormLimit is how long a seed is asked for again, and stormPause the time before
// that: readers of a kube-apiserver do not give up at the first error.
const (
	stormLimit = 2 * time.Minute
	stormPause = 50 * time.Millisecond
)

func (m *meter) storm(ctx context.Context, callers int) (*Storm, error) {
	p, b, err := m.sealBoth(ctx)
	if err != nil {
		return nil, fmt.Errorf("restart storm: %w", err)
	}
	s := &Storm{Seeds: m.Seeds, Callers: callers}
	if s.Baseline, err = stormOf(ctx, m.baseline.KMS, b, callers, m.baseline.Restart); err != nil {
		return nil, fmt.Errorf("restart storm of the bare service: %w", err)
	}
	if s.Plugin, err = stormOf(ctx, m.plugin, p, callers, m.Restart); err != nil {
		return nil, fmt.Errorf("restart storm: %w", err)
	}
	return s, nil
}

func stormOf(ctx context.Context, kms v2.KeyManagementServiceClient, records []Record, callers int, restart func(context.Context) error) (StormResult, error) {
	if err := restart(ctx); err != nil {
		return StormResult{}, fmt.Errorf("restarting: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, stormLimit)
	defer cancel()
	var next, failed, first atomic.Int64
	start := time.Now()
	sample, err := Load{Callers: callers, Calls: len(records)}.run(ctx, func(ctx context.Context) (time.Duration, error) {
		open := records[next.Add(1)-1].Decrypt(kms)
		for {
			took, err := timed(ctx, open)
			if err == nil {
				first.CompareAndSwap(0, int64(time.Since(start)))
				return took, nil
			}
			failed.Add(1)
			select {
			case <-ctx.Done():
				return 0, fmt.Errorf("not every seed was given back in %s: %w", stormLimit, err)
			case <-time.After(stormPause):
			}
		}
	})
	return StormResult{First: time.Duration(first.Load()), All: sample.Elapsed, Failed: int(failed.Load()), Sample: sample}, err
}

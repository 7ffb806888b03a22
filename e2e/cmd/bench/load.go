package main

import (
	"context"
	"crypto/rand"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	v2 "k8s.io/kms/apis/v2"
)

// target is one method of one service, ready to be called.
type target func(ctx context.Context) error

func encryptOf(kms v2.KeyManagementServiceClient) target {
	seed := newSeed()
	return func(ctx context.Context) error {
		_, err := kms.Encrypt(ctx, &v2.EncryptRequest{Plaintext: seed, Uid: uid})
		return err
	}
}

// decryptOf decrypts one record of the service again and again: warm.
func decryptOf(ctx context.Context, kms v2.KeyManagementServiceClient) (target, error) {
	sealed, err := kms.Encrypt(ctx, &v2.EncryptRequest{Plaintext: newSeed(), Uid: uid})
	if err != nil {
		return nil, err
	}
	req := requestFor(sealed)
	return func(ctx context.Context) error {
		_, err := kms.Decrypt(ctx, req)
		return err
	}, nil
}

const uid = "00000000-0000-4000-8000-000000000000"

func newSeed() []byte {
	seed := make([]byte, 32)
	rand.Read(seed)
	return seed
}

func requestFor(sealed *v2.EncryptResponse) *v2.DecryptRequest {
	return &v2.DecryptRequest{Uid: uid, Ciphertext: sealed.Ciphertext, KeyId: sealed.KeyId, Annotations: sealed.Annotations}
}

// result is what calls of one target took.
type result struct {
	p50        time.Duration
	throughput float64 // calls per second
}

// load makes calls with so many callers at once.
func load(ctx context.Context, call target, callers, calls int) (result, error) {
	var (
		left   atomic.Int64
		mu     sync.Mutex
		took   []time.Duration
		failed error
		wg     sync.WaitGroup
	)
	left.Store(int64(calls))
	start := time.Now()
	for range callers {
		wg.Go(func() {
			var own []time.Duration
			var err error
			for err == nil && left.Add(-1) >= 0 {
				began := time.Now()
				err = call(ctx)
				own = append(own, time.Since(began))
			}
			mu.Lock()
			defer mu.Unlock()
			took = append(took, own...)
			if err != nil {
				failed = err
			}
		})
	}
	wg.Wait()
	all := time.Since(start)
	slices.Sort(took)
	return result{took[len(took)/2], float64(len(took)) / all.Seconds()}, failed
}

// compare loads a target and its baseline in turn, so that both meet the same
// weather, and returns the median over the rounds of the target's p50 and
// throughput as ratios to the baseline's.
func compare(ctx context.Context, ours, baseline target, callers, calls, rounds int) (p50, throughput float64, err error) {
	var p50s, throughputs []float64
	for range rounds {
		b, err := load(ctx, baseline, callers, calls)
		if err != nil {
			return 0, 0, err
		}
		o, err := load(ctx, ours, callers, calls)
		if err != nil {
			return 0, 0, err
		}
		p50s = append(p50s, float64(o.p50)/float64(b.p50))
		throughputs = append(throughputs, o.throughput/b.throughput)
	}
	slices.Sort(p50s)
	slices.Sort(throughputs)
	return p50s[rounds/2], throughputs[rounds/2], nil
}

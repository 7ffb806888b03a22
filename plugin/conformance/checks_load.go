package conformance

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

var loadChecks = []check{
	{Info: Info{
		Name: "encrypt-latency", Level: Should, Source: docs + ": below 100 ms",
		About: "The median of Encrypt is below 100 ms.",
	}, run: encryptLatency},
	{Info: Info{
		Name: "decrypt-latency", Level: Should, Source: docs + ": below 10 ms",
		About: "The median of Decrypt, of seeds that were not decrypted before, is below 10 ms.",
	}, run: decryptLatency},
	{Info: Info{
		Name: "decrypt-storm", Level: Should, Source: kep + ", Performance; " + ours,
		About: "5,000 Decrypts of different seeds, 100 at once, as at a start of kube-apiserver, all succeed within 3 s each.",
	}, run: decryptStorm},
	{Info: Info{
		Name: "hundred-connections", Level: Should, Source: ours,
		About: "100 connections at once are all served.",
	}, run: hundredConnections},
}

func encryptLatency(ctx context.Context, s *session) (string, error) {
	return s.latency(ctx, "Encrypt", 100*time.Millisecond, func(int) error {
		_, err := s.encrypt(ctx, s.conn, s.seed())
		return err
	})
}

func decryptLatency(ctx context.Context, s *session) (string, error) {
	records, err := s.records(ctx, batches*s.few(100))
	if err != nil {
		return "", err
	}
	return s.latency(ctx, "Decrypt", 10*time.Millisecond, func(i int) error { return s.opens(ctx, s.conn, records[i]) })
}

// batches is how many medians are taken, of which the best counts.
const batches = 3

// latency holds the median of a call to a limit. What a bare gRPC server takes
// at the same moments is the machine's doing and is taken off.
func (s *session) latency(ctx context.Context, method string, limit time.Duration, call func(i int) error) (string, error) {
	bare, err := newBare(s)
	if err != nil {
		return "", err
	}
	defer bare.close()
	n := s.few(100)
	best, own, base := time.Duration(math.MaxInt64), time.Duration(0), time.Duration(0)
	for batch := range batches {
		var calls, others []time.Duration
		for i := range n {
			d, err := took(func() error { return call(batch*n + i) })
			if err != nil {
				return "", err
			}
			calls, others = append(calls, d), append(others, bare.took(ctx))
		}
		if c, o := median(calls), median(others); c-o < best {
			best, own, base = c-o, c, o
		}
	}
	seen := fmt.Sprintf("the median of %s, one call at a time, is %s; of a bare gRPC server beside it, %s", method, own, base)
	if best > limit {
		return "", breachf("%s; less than %s is asked for", seen, limit)
	}
	return seen, nil
}

func decryptStorm(ctx context.Context, s *session) (string, error) {
	records, err := s.records(ctx, s.few(5000))
	if err != nil {
		return "", fmt.Errorf("preparing: %w", err)
	}
	return s.storm(ctx, records)
}

// storm decrypts records as several kube-apiservers that start would.
func (s *session) storm(ctx context.Context, records []record) (string, error) {
	d, err := took(func() error { return s.decryptAtOnce(ctx, records, 100) })
	if err != nil {
		return "", breachf("of %d Decrypts of different seeds, 100 at once, one failed: %w", len(records), err)
	}
	return fmt.Sprintf("%d Decrypts of different seeds, 100 at once, all succeeded in %s (%.0f a second)",
		len(records), d.Round(time.Millisecond), float64(len(records))/d.Seconds()), nil
}

func hundredConnections(ctx context.Context, s *session) (string, error) {
	const connections = 100
	records, err := s.records(ctx, connections)
	if err != nil {
		return "", err
	}
	var clients []*client
	defer func() {
		for _, c := range clients {
			c.Close()
		}
	}()
	for range connections {
		c, err := s.dial()
		if err != nil {
			return "", err
		}
		clients = append(clients, c)
	}
	for range 2 { // the second time all are open for certain
		err := inParallel(len(clients), 20, func(i int) error {
			err := s.opens(ctx, clients[i], records[i])
			if err == nil && clients[i].dropped.Load() > 0 {
				err = breachf("the plugin ended the connection")
			}
			if err != nil {
				err = breachf("with 100 connections open, on connection %d: %w", i+1, err)
			}
			return err
		})
		if err != nil {
			return "", err
		}
	}
	return "100 connections at once were served, twice each", nil
}

// kmsCalls returns how many calls the KMS has had while f ran, and how many in as
// long a time after it: the plugin's background asks as well.
func (s *session) kmsCalls(ctx context.Context, f func() error) (during, idle int, err error) {
	start := time.Now()
	counts := make([]int, 3)
	for i, step := range []func() error{
		func() error { return nil },
		f,
		func() error { return pause(ctx, time.Since(start)) },
	} {
		if err := step(); err != nil {
			return 0, 0, err
		}
		if counts[i], err = s.countKMSCalls(ctx); err != nil {
			return 0, 0, err
		}
	}
	return counts[1] - counts[0], counts[2] - counts[1], nil
}

func (s *session) countKMSCalls(ctx context.Context) (int, error) {
	output, err := s.hook(ctx, "kms-calls")
	if err != nil {
		return 0, err
	}
	n, err := strconv.Atoi(strings.TrimSpace(output))
	if err != nil {
		err = fmt.Errorf("hook kms-calls: its output is no number: %.80q", output)
		s.hookErrs = append(s.hookErrs, err)
		return 0, skip(err.Error())
	}
	return n, nil
}

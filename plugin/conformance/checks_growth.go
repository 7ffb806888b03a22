package conformance

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

var growthChecks = []check{
	{Info: Info{
		Name: "memory-growth", Level: Should, Source: ours,
		About: "Thousands of calls, good and bad, do not make the plugin's memory grow and grow.",
	}, run: memoryGrowth},
	{Info: Info{
		Name: "descriptor-growth", Level: Should, Source: ours,
		About: "Connections that come and go leave no file descriptors behind in the plugin.",
	}, run: descriptorGrowth},
}

// process is the plugin as /proc shows it.
type process int32

// observed finds the plugin's process.
func (s *session) observed(ctx context.Context) (process, error) {
	cred, err := s.listener(ctx)
	if err != nil {
		return 0, err
	}
	switch int(cred.Pid) {
	case os.Getpid():
		return 0, skipf("the plugin runs in the process of this suite, whose own memory and files cannot be told apart")
	case 0:
		return 0, skipf("the plugin's process is not visible in this PID namespace")
	case 1:
		return 0, skipf("PID 1 made the socket (socket activation?), so the plugin's process is not known")
	}
	p := process(cred.Pid)
	if _, err := p.memory(); err != nil {
		return 0, skipf("reading /proc of the plugin: %v", err)
	}
	if _, err := p.descriptors(); err != nil {
		return 0, skipf("reading /proc of the plugin: %v", err)
	}
	return p, nil
}

// memory returns the resident memory in bytes.
func (p process) memory() (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", p))
	if err != nil {
		return 0, err
	}
	var size, resident int64
	_, err = fmt.Sscan(string(b), &size, &resident)
	return resident * int64(os.Getpagesize()), err
}

func (p process) descriptors() (int, error) {
	names, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p))
	return len(names), err
}

// memoryGrowth works the plugin in rounds after the first of which a sound one
// has all the memory that it needs. What grows by a like amount in each of the
// others will not stop.
func memoryGrowth(ctx context.Context, s *session) (string, error) {
	p, err := s.observed(ctx)
	if err != nil {
		return "", err
	}
	const rounds = 4
	const mib = 1 << 20
	sizes := make([]int64, rounds)
	for i := range sizes {
		if err := s.work(ctx, s.few(2000)); err != nil {
			return "", err
		}
		if sizes[i], err = p.memory(); err != nil {
			return "", breachf("the plugin's process %d is gone: %v", p, err)
		}
	}
	grown := sizes[rounds-1] - sizes[0]
	seen := fmt.Sprintf("resident memory after each of %d rounds of %d calls, in MiB: %s", rounds, s.few(2000), inMiB(sizes))
	steady := true
	for i := 1; i < rounds; i++ {
		steady = steady && sizes[i]-sizes[i-1] > grown/(2*rounds)
	}
	if steady && grown > 16*mib {
		return "", breachf("%s; it grows with each round", seen)
	}
	return seen, nil
}

func inMiB(sizes []int64) string {
	var parts []string
	for _, size := range sizes {
		parts = append(parts, fmt.Sprintf("%.1f", float64(size)/(1<<20)))
	}
	return strings.Join(parts, ", ")
}

// work makes n calls: one Encrypt, one Decrypt and two bad Decrypts at a time.
func (s *session) work(ctx context.Context, n int) error {
	seeds := make([][]byte, n/4)
	for i := range seeds {
		seeds[i] = s.seed()
	}
	return inParallel(len(seeds), 16, func(i int) error {
		r, err := s.encrypt(ctx, s.conn, seeds[i])
		if err != nil {
			return err
		}
		if err := s.opens(ctx, s.conn, r); err != nil {
			return err
		}
		unknown, changed := r.request(), r.request()
		unknown.KeyId = "no-such-key"
		if len(changed.Ciphertext) > 0 {
			changed.Ciphertext[len(changed.Ciphertext)-1] ^= 1
		}
		s.conn.Decrypt(ctx, unknown) // what these answer is for other checks
		s.conn.Decrypt(ctx, changed)
		return nil
	})
}

func descriptorGrowth(ctx context.Context, s *session) (string, error) {
	p, err := s.observed(ctx)
	if err != nil {
		return "", err
	}
	const spare = 5
	before, err := p.descriptors()
	if err != nil {
		return "", err
	}
	const connections = 100
	for range connections {
		err := s.with(func(c *client) error {
			_, err := c.Status(ctx)
			if status.Code(err) == codes.Canceled {
				return nil
			}
			return err
		})
		if err != nil {
			return "", err
		}
	}
	// A server may take a moment to see that a client has gone.
	var after int
	for range 50 {
		if after, err = p.descriptors(); err != nil {
			return "", breachf("the plugin's process %d is gone: %v", p, err)
		}
		if after <= before+spare {
			break
		}
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return "", err
		}
	}
	seen := fmt.Sprintf("%d open files before %d connections came and went, %d after", before, connections, after)
	if after > before+spare {
		return "", breachf("%s; the plugin leaks them, and will not accept a connection once its limit is reached", seen)
	}
	return seen, nil
}

// pause waits, unless ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

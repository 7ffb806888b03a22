package plugin_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	v2 "k8s.io/kms/apis/v2"

	"github.com/kube-kek/kube-kek/kek/kektest"
	"github.com/kube-kek/kube-kek/kek/localkek"
	"github.com/kube-kek/kube-kek/plugin"
)

// bare answers constants of the same sizes as a ring's: what gRPC itself costs.
type bare struct {
	v2.UnimplementedKeyManagementServiceServer
	enc *v2.EncryptResponse
	dec *v2.DecryptResponse
}

func (b *bare) Encrypt(context.Context, *v2.EncryptRequest) (*v2.EncryptResponse, error) {
	return b.enc, nil
}

func (b *bare) Decrypt(context.Context, *v2.DecryptRequest) (*v2.DecryptResponse, error) {
	return b.dec, nil
}

// BenchmarkSocket compares the service with a bare gRPC server that returns
// constants, over a socket each, by turns in one run. It reports the ratio of
// the median latency with one caller, and of the throughput with 64.
func BenchmarkSocket(b *testing.B) {
	ring := newRing(b, kektest.New(kektest.Config{}))
	seed := make([]byte, 32)
	sealed, err := ring.Seal(b.Context(), seed)
	if err != nil {
		b.Fatal(err)
	}
	audit, err := plugin.NewAuditLog(filepath.Join(b.TempDir(), "audit.log"), true)
	if err != nil {
		b.Fatal(err)
	}
	defer audit.Close()

	ours := benchClient(b, ring, nil)
	audited := benchClient(b, ring, audit)
	constant := benchBare(b, sealed, seed)

	methods := map[string]func(v2.KeyManagementServiceClient) error{
		"Encrypt": func(c v2.KeyManagementServiceClient) error {
			_, err := c.Encrypt(context.Background(), &v2.EncryptRequest{Plaintext: seed, Uid: "6b6f3d0e-4a1c-4a6e-9a57-0d3c1b7f2e11"})
			return err
		},
		"Decrypt": func(c v2.KeyManagementServiceClient) error {
			_, err := c.Decrypt(context.Background(), &v2.DecryptRequest{
				Ciphertext: sealed.Ciphertext, KeyId: sealed.KeyID, Annotations: sealed.Annotations, Uid: "6b6f3d0e-4a1c-4a6e-9a57-0d3c1b7f2e11",
			})
			return err
		},
	}
	for _, method := range []string{"Encrypt", "Decrypt"} {
		for _, callers := range []int{1, 64} {
			for i, client := range []v2.KeyManagementServiceClient{ours, audited} {
				b.Run(fmt.Sprintf("%s/callers=%d/%s", method, callers, []string{"plain", "audited"}[i]), func(b *testing.B) {
					compare(b, callers, func() error { return methods[method](client) }, func() error { return methods[method](constant) })
				})
			}
		}
	}
}

func benchClient(b *testing.B, ring *localkek.Ring, audit *plugin.AuditLog) v2.KeyManagementServiceClient {
	log := slog.New(slog.DiscardHandler)
	m := plugin.NewMetrics(prometheus.NewRegistry(), plugin.Build{})
	m.Watch(ring)
	client, _ := start(b, plugin.NewServer(plugin.NewService(plugin.Config{Ring: ring, Audit: audit}), m, log))
	return client
}

func benchBare(b *testing.B, sealed localkek.Sealed, seed []byte) v2.KeyManagementServiceClient {
	socket := filepath.Join(b.TempDir(), "bare.sock")
	lis, err := net.Listen("unix", socket)
	if err != nil {
		b.Fatal(err)
	}
	srv := grpc.NewServer()
	v2.RegisterKeyManagementServiceServer(srv, &bare{
		enc: &v2.EncryptResponse{Ciphertext: sealed.Ciphertext, KeyId: sealed.KeyID, Annotations: sealed.Annotations},
		dec: &v2.DecryptResponse{Plaintext: seed},
	})
	go srv.Serve(lis)
	b.Cleanup(srv.Stop)
	return dial(b, socket)
}

// compare runs both in turns of a few hundred calls, so that what else the
// machine does falls on both alike.
func compare(b *testing.B, callers int, ours, bare func() error) {
	const turn = 512
	var took, cpu [2]time.Duration
	var lat [2][]time.Duration
	for done := 0; done < b.N; done += turn {
		for i, call := range []func() error{ours, bare} {
			start, used := time.Now(), cpuTime(b)
			lat[i] = append(lat[i], burst(b, callers, turn, call)...)
			took[i] += time.Since(start)
			cpu[i] += cpuTime(b) - used
		}
	}
	p50 := func(d []time.Duration) float64 {
		slices.Sort(d)
		return float64(d[len(d)/2].Nanoseconds())
	}
	b.ReportMetric(p50(lat[0])/p50(lat[1]), "p50-ratio")
	b.ReportMetric(took[1].Seconds()/took[0].Seconds(), "throughput-ratio")
	b.ReportMetric(cpu[0].Seconds()/cpu[1].Seconds(), "cpu-ratio")
	b.ReportMetric(p50(lat[0])/1000, "p50-µs")
	b.ReportMetric(float64(len(lat[0]))/took[0].Seconds(), "calls/s")
}

// cpuTime is what this process, with its client and both servers, has used: a
// measure that other processes hardly disturb.
func cpuTime(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func burst(b *testing.B, callers, calls int, call func() error) []time.Duration {
	lat := make([]time.Duration, calls)
	var wg sync.WaitGroup
	for c := range callers {
		wg.Go(func() {
			for i := c; i < calls; i += callers {
				start := time.Now()
				if err := call(); err != nil {
					b.Error(err)
					return
				}
				lat[i] = time.Since(start)
			}
		})
	}
	wg.Wait()
	return lat
}

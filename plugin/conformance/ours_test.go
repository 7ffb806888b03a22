package conformance_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"github.com/kube-kek/kube-kek/kek"
	"github.com/kube-kek/kube-kek/kek/kektest"
	"github.com/kube-kek/kube-kek/kek/localkek"
	"github.com/kube-kek/kube-kek/plugin"
	"github.com/kube-kek/kube-kek/plugin/conformance"
)

// kubeKEK is our own plugin on a KEK in memory.
type kubeKEK struct {
	socket string
	home   *kektest.Provider
	edit   func(*localkek.Config)

	mu      sync.Mutex
	release func() // ends the outage
	srv     *grpc.Server
	lis     interface{ Close() error }
	stop    context.CancelFunc
}

func newKubeKEK(socket string) *kubeKEK {
	return &kubeKEK{socket: socket, home: kektest.New(kektest.Config{Binding: kek.NewBinding("test", nil)}), edit: func(*localkek.Config) {}}
}

func (p *kubeKEK) start() error {
	c := localkek.DefaultConfig()
	c.Cluster, c.Renew = "test", 50*time.Millisecond
	c.Current = localkek.Home{Scheme: "fake", ID: "fake", Provider: kek.Retry(kek.Timeout(p.home, time.Second))}
	p.edit(&c)
	ring, err := localkek.New(c)
	if err != nil {
		return err
	}
	lis, err := plugin.Listen(plugin.SocketConfig{Path: p.socket, UID: -1, GID: -1, AllowedUIDs: []uint32{uint32(os.Geteuid())}})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	go ring.Run(ctx)
	log := slog.New(slog.DiscardHandler)
	metrics := plugin.NewMetrics(prometheus.NewRegistry(), plugin.Build{})
	srv := plugin.NewServer(plugin.NewService(plugin.Config{Ring: ring}), metrics, log)
	go srv.Serve(lis)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.srv, p.lis, p.stop = srv, lis, cancel
	return nil
}

func (p *kubeKEK) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.srv != nil {
		p.stop()
		p.srv.Stop()
		p.srv = nil
	}
}

// kill ends the plugin and leaves a dead socket where it was.
func (p *kubeKEK) kill() error {
	p.end()
	return leaveDead(p.socket)
}

func (p *kubeKEK) hooks() conformance.Hooks {
	do := func(f func()) conformance.Hook {
		return func(context.Context) (string, error) { f(); return "", nil }
	}
	return conformance.Hooks{
		Rotate: do(func() { p.home.Rotate() }),
		KMSDown: do(func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.release = p.home.Hang()
		}),
		KMSUp: do(func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			if p.release != nil {
				p.release()
				p.release = nil
			}
		}),
		DisableKey: do(func() { p.home.Disable() }),
		EnableKey:  do(func() { p.home.Enable() }),
		Kill:       func(context.Context) (string, error) { return "", p.kill() },
		Restart:    func(context.Context) (string, error) { p.end(); return "", p.start() },
		KMSCalls: func(context.Context) (string, error) {
			return strconv.Itoa(p.home.Calls()), nil
		},
	}
}

func TestOurPluginPassesEveryCheckAndStory(t *testing.T) {
	tests := map[string]struct {
		edit    func(*localkek.Config)
		skipped []string
		advice  bool // is followed
	}{
		// Records under one local KEK differ in their ciphertext alone.
		"with a lease": {func(*localkek.Config) {}, []string{"records-swapped"}, true},
		// Local KEKs that are used up, or never kept, need the KMS in an outage.
		"with local KEKs of three uses": {func(c *localkek.Config) { c.MaxUses = 3 }, nil, false},
		"strict":                        {func(c *localkek.Config) { c.Lease, c.MaxUses = 0, 1 }, nil, false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newKubeKEK(filepath.Join(t.TempDir(), "kek.sock"))
			p.edit = test.edit
			if err := p.start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(p.end)
			o := quick(p.hooks())
			o.Within = 15 * time.Second
			report, err := conformance.Check(t.Context(), "unix://"+p.socket, o)
			if err != nil {
				t.Fatal(err)
			}
			logAll(t, report)
			wantOnly(t, report)
			if advice := report.Failures(conformance.Advice); test.advice && len(advice) > 0 {
				t.Errorf("advice that is not followed: %s", advice[0].Name)
			}
			want := append(test.skipped, ofProcesses...)
			if diff := cmp.Diff(want, skipped(report)); diff != "" {
				t.Errorf("skipped checks (-want +got):\n%s", diff)
			}
		})
	}
}

func TestOurPluginInAProcessOfItsOwnPassesWithoutStories(t *testing.T) {
	t.Parallel()
	conformance.Run(t, child(t, "kube-kek"), quick(conformance.Hooks{}))
}

func TestGrowthIsFoundInAProcessOfItsOwn(t *testing.T) {
	for role, want := range map[string]string{"leaks memory": "memory-growth", "leaks files": "descriptor-growth"} {
		t.Run(role, func(t *testing.T) {
			t.Parallel()
			report, err := conformance.Check(t.Context(), child(t, role), quick(conformance.Hooks{}))
			if err != nil {
				t.Fatal(err)
			}
			logAll(t, report)
			wantOnly(t, report, want)
		})
	}
}

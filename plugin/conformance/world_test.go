package conformance_test

import (
	"context"
	"errors"
	"flag"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"k8s.io/klog/v2"
	v2 "k8s.io/kms/apis/v2"

	"github.com/kube-kek/kube-kek/plugin/conformance"
)

// Two checks look at the plugin's process, which must not be that of the tests:
// it is this test binary in a role.
const (
	roleVar   = "KUBE_KEK_TEST_ROLE"
	socketVar = "KUBE_KEK_TEST_SOCKET"
)

func TestMain(m *testing.M) {
	// kube-apiserver's code tells of each socket that is not there.
	klog.SetLogger(logr.Discard())
	// The tests wait more than they work.
	flag.Parse()
	flag.Set("test.parallel", "4")
	role := os.Getenv(roleVar)
	if role == "" {
		os.Exit(m.Run())
	}
	serve := roles[role]
	if err := serve(os.Getenv(socketVar)); err != nil {
		os.Stderr.WriteString(err.Error() + "\n")
		os.Exit(1)
	}
	os.Stdout.WriteString("listening\n")
	io.Copy(io.Discard, os.Stdin)
}

// child runs a role in a process of its own until the test ends.
func child(t *testing.T, role string) (endpoint string) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "kms.sock")
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), roleVar+"="+role, socketVar+"="+socket)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stdin.Close(); cmd.Wait() })
	if _, err := stdout.Read(make([]byte, 16)); err != nil {
		t.Fatalf("the child %s did not start: %v", role, err)
	}
	return "unix://" + socket
}

// world is a plugin with a KMS behind it, and what hooks do to both.
type world struct {
	socket string
	kms    *kms

	// wrap puts a fault around the toy.
	wrap func(v2.KeyManagementServiceServer) v2.KeyManagementServiceServer
	// listen makes the listener. It takes over a dead socket.
	listen func(socket string) (net.Listener, error)
	// refuseStart keeps the plugin from starting.
	refuseStart func() bool

	mu    sync.Mutex
	lis   net.Listener
	srv   *grpc.Server
	close context.CancelFunc
	opts  []grpc.ServerOption
}

func newWorld(t *testing.T) *world {
	w := &world{
		socket: filepath.Join(t.TempDir(), "kms.sock"), kms: &kms{},
		wrap:        same,
		listen:      listen,
		refuseStart: func() bool { return false },
	}
	w.kms.rotate()
	t.Cleanup(w.stop)
	return w
}

// listen takes over a dead socket, for its owner alone.
func listen(socket string) (net.Listener, error) {
	if socket[0] != '@' {
		if conn, err := net.Dial("unix", socket); err == nil {
			conn.Close()
			return nil, errors.New("the socket is in use")
		}
		os.Remove(socket)
	}
	lis, err := net.Listen("unix", socket)
	if err != nil || socket[0] == '@' {
		return lis, err
	}
	return lis, os.Chmod(socket, 0o600)
}

func (w *world) start() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.refuseStart() {
		return nil
	}
	lis, err := w.listen(w.socket)
	if err != nil {
		return nil // it has ended with an error, which no supervisor tells
	}
	ctx, cancel := context.WithCancel(context.Background())
	p := newToy(w.kms)
	p.refresh()
	go p.run(ctx)
	srv := grpc.NewServer(w.opts...)
	v2.RegisterKeyManagementServiceServer(srv, w.wrap(p))
	go srv.Serve(lis)
	w.lis, w.srv, w.close = lis, srv, cancel
	return nil
}

// stop ends the plugin, as a supervisor does that has waited for it.
func (w *world) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.srv != nil {
		w.srv.Stop()
		w.close()
		w.srv = nil
	}
}

// leaveDead makes a socket's file that nobody listens on, as SIGKILL leaves it.
func leaveDead(socket string) error {
	lis, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	lis.(*net.UnixListener).SetUnlinkOnClose(false)
	return lis.Close()
}

// kill ends the plugin and leaves its socket's file.
func (w *world) kill() {
	w.stop()
	leaveDead(w.socket)
}

func (w *world) hooks() conformance.Hooks {
	do := func(f func()) conformance.Hook {
		return func(context.Context) (string, error) { f(); return "", nil }
	}
	set := func(f func(*kms)) conformance.Hook {
		return do(func() { w.kms.do(func() { f(w.kms) }) })
	}
	return conformance.Hooks{
		Rotate:     do(w.kms.rotate),
		KMSDown:    set(func(k *kms) { k.down = true }),
		KMSUp:      set(func(k *kms) { k.down = false }),
		DisableKey: set(func(k *kms) { k.disabled = true }),
		EnableKey:  set(func(k *kms) { k.disabled = false }),
		Kill:       do(w.kill),
		Restart:    func(context.Context) (string, error) { w.stop(); return "", w.start() },
		KMSCalls: func(context.Context) (string, error) {
			n := 0
			w.kms.do(func() { n = w.kms.calls })
			return strconv.Itoa(n) + "\n", nil
		},
	}
}

// quick is a run that a test can wait for.
func quick(h conformance.Hooks) conformance.Options {
	return conformance.Options{Seed: 1, Quick: true, Within: 3 * time.Second, Outage: 400 * time.Millisecond, Hooks: h}
}

// failures returns the names of the failed checks that are no advice, and logs
// what was seen.
func failures(t *testing.T, report conformance.Report) []string {
	t.Helper()
	var names []string
	for _, r := range report.Failures(conformance.Must, conformance.Should) {
		t.Logf("%s: %s", r.Name, r.Seen)
		names = append(names, r.Name)
	}
	return names
}

// wantOnly wants these checks to fail and no other.
func wantOnly(t *testing.T, report conformance.Report, want ...string) {
	t.Helper()
	if diff := cmp.Diff(sorted(want), sorted(failures(t, report))); diff != "" {
		t.Errorf("failed checks (-want +got):\n%s", diff)
	}
}

func sorted(names []string) []string { return slices.Sorted(slices.Values(names)) }

// watchForStandstill tells the longest time for which a goroutine that sleeps
// 50 ms at a time was kept from going on: a machine that does so for a second
// breaks the 3 s of a call, whatever the plugin.
func watchForStandstill(t *testing.T) (longest func() time.Duration) {
	var most atomic.Int64
	go func() {
		for last := time.Now(); t.Context().Err() == nil; {
			time.Sleep(50 * time.Millisecond)
			now := time.Now()
			most.Store(max(most.Load(), int64(now.Sub(last))))
			last = now
		}
	}()
	return func() time.Duration { return time.Duration(most.Load()) }
}

func logAll(t *testing.T, report conformance.Report) {
	t.Helper()
	for _, r := range report.Results {
		t.Logf("%-28s %-6s %-4s %6.2fs %s", r.Name, r.Level, r.Verdict, r.Duration.Seconds(), r.Seen)
	}
}

// ofProcesses are the checks that cannot be made of a plugin in the tests' own
// process.
var ofProcesses = []string{"memory-growth", "descriptor-growth"}

// skipped returns the names of the checks that were not made.
func skipped(report conformance.Report) []string {
	var names []string
	for _, r := range report.Results {
		if r.Verdict == conformance.Skip && (r.Name != "other-user" || os.Geteuid() == 0) {
			names = append(names, r.Name)
		}
	}
	return names
}

func same(s v2.KeyManagementServiceServer) v2.KeyManagementServiceServer { return s }

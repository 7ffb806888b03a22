package plugin_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	v2 "k8s.io/kms/apis/v2"

	"github.com/kube-kek/kube-kek/kek/localkek"
	"github.com/kube-kek/kube-kek/plugin"
)

// Some tests need a second process: one to kill, one of another user, one that
// systemd started. It is this test binary, told by the environment what to be.
const (
	roleVar = "KUBE_KEK_TEST_ROLE"
	pathVar = "KUBE_KEK_TEST_SOCKET"
	uidVar  = "KUBE_KEK_TEST_UID"
)

func TestMain(m *testing.M) {
	role := os.Getenv(roleVar)
	if role == "" {
		os.Exit(m.Run())
	}
	var err error
	switch role {
	case "serve":
		err = beServer()
	case "connect":
		err = beClient()
	default:
		err = fmt.Errorf("no such role: %q", role)
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

// beServer serves a constant ring until its input ends or it is killed.
func beServer() error {
	lis, err := plugin.Listen(plugin.SocketConfig{
		Path: os.Getenv(pathVar), UID: -1, GID: -1, AllowedUIDs: []uint32{uint32(os.Geteuid())},
	})
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	go func() {
		io.Copy(io.Discard, os.Stdin)
		stop()
	}()
	fmt.Println("listening")
	log := slog.New(slog.DiscardHandler)
	return plugin.Serve(ctx, newServer(plugin.Config{Ring: &fakeRing{}}, log), lis, plugin.DrainTimeout, log)
}

// beClient connects as another user and tells whether it was served a byte.
func beClient() error {
	uid, err := strconv.Atoi(os.Getenv(uidVar))
	if err != nil {
		return err
	}
	if err := syscall.Setuid(uid); err != nil {
		return err
	}
	conn, err := net.Dial("unix", os.Getenv(pathVar))
	if err != nil {
		return err
	}
	defer conn.Close()
	n, _ := conn.Read(make([]byte, 1))
	fmt.Println("bytes:", n)
	return nil
}

// process is a child in a role.
type process struct {
	*exec.Cmd
	stdin io.WriteCloser
	out   *bufio.Scanner
}

// child starts this test binary in a role. edit may change the command before.
func child(t *testing.T, role, socket string, edit func(*exec.Cmd)) *process {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), roleVar+"="+role, pathVar+"="+socket)
	cmd.Stderr = os.Stderr
	if edit != nil {
		edit(cmd)
	}
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
	t.Cleanup(func() {
		stdin.Close()
		cmd.Process.Kill()
		cmd.Wait()
	})
	return &process{cmd, stdin, bufio.NewScanner(stdout)}
}

// line returns the child's next line of output.
func (p *process) line(t *testing.T) string {
	t.Helper()
	if !p.out.Scan() {
		t.Fatalf("the child ended without another line: %v", p.out.Err())
	}
	return p.out.Text()
}

// fakeRing answers what its fields say, and constants where they are nil.
type fakeRing struct {
	keyID func() (string, error)
	seal  func(context.Context, []byte) (localkek.Sealed, error)
	open  func(context.Context, localkek.Sealed) ([]byte, error)
}

func (r *fakeRing) KeyID() (string, error) {
	if r.keyID != nil {
		return r.keyID()
	}
	return "fake:key@1", nil
}

func (r *fakeRing) Seal(ctx context.Context, seed []byte) (localkek.Sealed, error) {
	if r.seal != nil {
		return r.seal(ctx, seed)
	}
	return localkek.Sealed{
		KeyID: "fake:key@1", Ciphertext: []byte("ciphertext"),
		Annotations: map[string][]byte{localkek.AnnotationName: []byte("wrapped")},
	}, nil
}

func (r *fakeRing) Open(ctx context.Context, s localkek.Sealed) ([]byte, error) {
	if r.open != nil {
		return r.open(ctx, s)
	}
	return []byte("seed"), nil
}

func newServer(c plugin.Config, log *slog.Logger) *grpc.Server {
	m := plugin.NewMetrics(prometheus.NewRegistry(), plugin.Build{})
	return plugin.NewServer(plugin.NewService(c), m, log)
}

// serve runs a service on a real socket until the test ends, and returns a
// client of it.
func serve(t testing.TB, c plugin.Config) (client v2.KeyManagementServiceClient, socket string) {
	t.Helper()
	log := c.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return start(t, newServer(c, log))
}

// start runs a server on a real socket until the test ends.
func start(t testing.TB, srv *grpc.Server) (client v2.KeyManagementServiceClient, socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "kek.sock")
	lis := listen(t, socket)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- plugin.Serve(ctx, srv, lis, plugin.DrainTimeout, slog.New(slog.DiscardHandler)) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return dial(t, socket), socket
}

func listen(t testing.TB, socket string) net.Listener {
	t.Helper()
	lis, err := plugin.Listen(ours(socket))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lis.Close() })
	return lis
}

// ours is a socket for this process's own user.
func ours(socket string) plugin.SocketConfig {
	return plugin.SocketConfig{Path: socket, UID: -1, GID: -1, AllowedUIDs: []uint32{uint32(os.Geteuid())}}
}

func dial(t testing.TB, socket string) v2.KeyManagementServiceClient {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return v2.NewKeyManagementServiceClient(conn)
}

// logBuffer collects log lines.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func (b *logBuffer) count(text string) int { return strings.Count(b.String(), text) }

func (b *logBuffer) logger() *slog.Logger { return slog.New(slog.NewJSONHandler(b, nil)) }

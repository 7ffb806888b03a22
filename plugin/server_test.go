package plugin_test

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	v2 "k8s.io/kms/apis/v2"

	"github.com/kube-kek/kube-kek/kek/localkek"
	"github.com/kube-kek/kube-kek/plugin"
)

// slowRing is a ring whose Seal waits for release or its context.
func slowRing() (ring *fakeRing, began, release chan struct{}) {
	began, release = make(chan struct{}), make(chan struct{})
	return &fakeRing{seal: func(ctx context.Context, _ []byte) (localkek.Sealed, error) {
		began <- struct{}{}
		select {
		case <-release:
			return localkek.Sealed{KeyID: "k", Ciphertext: []byte("c")}, nil
		case <-ctx.Done():
			return localkek.Sealed{}, ctx.Err()
		}
	}}, began, release
}

func TestCallsUnderWayEndWellWhenTheDaemonStops(t *testing.T) {
	for _, tt := range []struct {
		name  string
		drain time.Duration
		want  codes.Code
	}{
		{"within the time of the drain", time.Hour, codes.OK},
		{"beyond it they are cut off", time.Millisecond, codes.Unavailable},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ring, began, release := slowRing()
			socket := filepath.Join(t.TempDir(), "kek.sock")
			lis := listen(t, socket)
			log := slog.New(slog.DiscardHandler)
			ctx, stop := context.WithCancel(t.Context())
			served := make(chan error, 1)
			srv := newServer(plugin.Config{Ring: ring}, log)
			go func() { served <- plugin.Serve(ctx, srv, lis, tt.drain, log) }()

			client := dial(t, socket)
			answered := make(chan error, 1)
			go func() {
				_, err := client.Encrypt(context.Background(), &v2.EncryptRequest{Plaintext: []byte("seed")})
				answered <- err
			}()
			<-began
			stop()
			waitFor(t, "the socket is gone", func() bool {
				_, err := os.Lstat(socket)
				return errors.Is(err, fs.ErrNotExist)
			})
			listen(t, socket) // the next daemon need not wait for the drain
			if tt.want == codes.OK {
				close(release)
			}
			if got := status.Code(<-answered); got != tt.want {
				t.Errorf("the call under way: %s, want %s", got, tt.want)
			}
			if err := <-served; err != nil {
				t.Errorf("Serve: %v", err)
			}
		})
	}
}

func TestSystemdIsToldOfStartAndEnd(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "notify")
	systemd, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer systemd.Close()
	t.Setenv("NOTIFY_SOCKET", socket)
	told := func() string {
		t.Helper()
		buf := make([]byte, 256)
		n, err := systemd.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		return string(buf[:n])
	}

	ring := &fakeRing{keyID: func() (string, error) { return "", errors.New("the KMS is away") }}
	lis := listen(t, filepath.Join(t.TempDir(), "kek.sock"))
	log := slog.New(slog.DiscardHandler)
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() {
		served <- plugin.Serve(ctx, newServer(plugin.Config{Ring: ring}, log), lis, plugin.DrainTimeout, log)
	}()
	if got := told(); got != "READY=1" {
		t.Errorf("told %q, want READY=1 though there is no key yet", got)
	}
	stop()
	if got := told(); got != "STOPPING=1" {
		t.Errorf("told %q, want STOPPING=1", got)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}

func TestServeTellsWhyItCannotGoOn(t *testing.T) {
	lis := listen(t, filepath.Join(t.TempDir(), "kek.sock"))
	lis.Close()
	log := slog.New(slog.DiscardHandler)
	err := plugin.Serve(t.Context(), newServer(plugin.Config{Ring: &fakeRing{}}, log), lis, plugin.DrainTimeout, log)
	if !errors.Is(err, net.ErrClosed) {
		t.Errorf("got %v, want that the listener is closed", err)
	}
}

func TestBadClientsDoNotHurtGoodOnes(t *testing.T) {
	client, socket := serve(t, plugin.Config{Ring: &fakeRing{}})
	well := func() {
		t.Helper()
		if _, err := client.Status(t.Context(), &v2.StatusRequest{}); err != nil {
			t.Errorf("the good client: %v", err)
		}
	}
	raw := func(say string) net.Conn {
		t.Helper()
		conn, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write([]byte(say)); err != nil {
			t.Fatal(err)
		}
		return conn
	}
	const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
	for range 50 {
		defer raw("").Close()
		defer raw(preface[:10]).Close()
		defer raw(preface).Close()
		defer raw("GET / HTTP/1.1\r\nHost: x\r\n\r\n").Close()
		raw(preface + "\x00\xff\xff\xff\xff\xff\xff\xff\xff").Close()
	}
	well()

	large := &v2.DecryptRequest{Ciphertext: make([]byte, 65<<10), KeyId: "k"}
	if _, err := client.Decrypt(t.Context(), large); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a message over 64 KiB: %v", err)
	}
	well()
}

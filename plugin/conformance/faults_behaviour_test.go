package conformance_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	v2 "k8s.io/kms/apis/v2"

	"github.com/kube-kek/kube-kek/plugin/conformance"
)

// slowly makes a method slow.
func slowly(method string, d time.Duration) func(*testing.T, *world) {
	return func(_ *testing.T, w *world) {
		w.opts = append(w.opts, grpc.UnaryInterceptor(func(ctx context.Context, r any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			if filepath.Base(info.FullMethod) == method {
				time.Sleep(d)
			}
			return next(ctx, r)
		}))
	}
}

func behaviourFaults() []fault {
	return []fault{
		{name: "healthz OK in capitals", want: []string{"status-healthz"}, stories: true,
			plant: wrapped(onStatus(func(st *v2.StatusResponse) { st.Healthz = "OK" }))},
		{name: "version v2beta2", want: []string{"status-version"},
			plant: wrapped(onStatus(func(st *v2.StatusResponse) { st.Version = "v2beta2" }))},
		{name: "version that varies", want: []string{"status-version"}, plant: wrapped(func(p inner) inner {
			var n atomic.Int32
			return onStatus(func(st *v2.StatusResponse) {
				if n.Add(1)%3 == 0 {
					st.Version = "v2beta1"
				}
			})(p)
		})},
		{name: "slow Status", want: []string{"status-cheap"}, plant: slowly("Status", 100*time.Millisecond)},
		{name: "slow Encrypt", want: []string{"encrypt-latency"}, plant: slowly("Encrypt", 120*time.Millisecond)},
		{name: "slow Decrypt", want: []string{"decrypt-latency"}, plant: slowly("Decrypt", 25*time.Millisecond)},
		{name: "dies of empty input", want: []string{"empty-input"}, plant: diesOfEmptyInput},
		{name: "plaintext in an error", want: []string{"errors-hide-plaintext"}, plant: wrapped(func(p inner) inner {
			return around{KeyManagementServiceServer: p, encrypt: func(ctx context.Context, r *v2.EncryptRequest) (*v2.EncryptResponse, error) {
				resp, err := p.Encrypt(ctx, r)
				if err != nil {
					err = fmt.Errorf("cannot encrypt %v: %w", r.Plaintext[:min(48, len(r.Plaintext))], err)
				}
				return resp, err
			}}
		})},
		{name: "stack trace as an error", want: []string{"errors-are-messages"}, plant: wrapped(onDecrypt(
			func(ctx context.Context, p inner, r *v2.DecryptRequest) (*v2.DecryptResponse, error) {
				resp, err := p.Decrypt(ctx, r)
				if err != nil {
					err = fmt.Errorf("%w\ngoroutine 7 [running]:\nmain.decrypt(...)\n\t/src/main.go:42", err)
				}
				return resp, err
			}))},
		{name: "hangs past the deadline", want: []string{"deadline-honoured"}, plant: wrapped(onDecrypt(
			func(ctx context.Context, p inner, r *v2.DecryptRequest) (*v2.DecryptResponse, error) {
				if d, ok := ctx.Deadline(); ok && time.Until(d) < time.Second {
					time.Sleep(2 * time.Second)
				}
				return p.Decrypt(ctx, r)
			}))},
		{name: "hangs on large requests", want: []string{"oversized"}, plant: wrapped(onDecrypt(
			func(ctx context.Context, p inner, r *v2.DecryptRequest) (*v2.DecryptResponse, error) {
				if len(r.Ciphertext) > 32<<10 {
					<-ctx.Done()
				}
				return p.Decrypt(ctx, r)
			}))},
		{name: "other errors for unknown methods", want: []string{"unknown-method"}, plant: func(_ *testing.T, w *world) {
			w.opts = append(w.opts, grpc.UnknownServiceHandler(func(any, grpc.ServerStream) error { return status.Error(codes.Internal, "what?") }))
		}},
		{name: "serves 50 connections at most", want: []string{"hundred-connections"}, plant: listening(func(lis net.Listener) net.Listener {
			return &crowdedListener{Listener: lis, most: 50}
		})},
		{name: "waits for the first byte of each client before the next", want: []string{"half-open-client"}, plant: listening(func(lis net.Listener) net.Listener {
			return patientListener{lis}
		})},
		{name: "refuses a seed that is being decrypted", want: []string{"concurrent-decrypts"}, plant: wrapped(func(p inner) inner {
			var busy sync.Map
			return onDecrypt(func(ctx context.Context, p inner, r *v2.DecryptRequest) (*v2.DecryptResponse, error) {
				if _, taken := busy.LoadOrStore(string(r.Ciphertext), true); taken && len(r.KeyId) == len(keyID(1)) {
					return nil, errors.New("busy")
				}
				time.Sleep(5 * time.Millisecond)
				defer busy.Delete(string(r.Ciphertext))
				return p.Decrypt(ctx, r)
			})(p)
		})},
		{name: "socket open to all", want: []string{"socket-mode"}, plant: chmodded(0o666, 0, true)},
		{name: "socket in a directory open to all", want: []string{"socket-directory"}, plant: func(t *testing.T, w *world) {
			if err := os.Chmod(filepath.Dir(w.socket), 0o777); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "serves another user", want: []string{"other-user"}, asRoot: true, plant: chmodded(0o660, conformance.DefaultCallerUID, false)},
		{name: "abstract socket", want: []string{"socket-path"}, plant: func(t *testing.T, w *world) {
			w.socket = fmt.Sprintf("@kube-kek-conformance-%d", os.Getpid())
			listening(func(lis net.Listener) net.Listener { return ownListener{lis} })(t, w)
		}},
	}
}

// listening puts a fault around the listener.
func listening(around func(net.Listener) net.Listener) func(*testing.T, *world) {
	return func(_ *testing.T, w *world) {
		inner := w.listen
		w.listen = func(socket string) (net.Listener, error) {
			lis, err := inner(socket)
			if err != nil {
				return nil, err
			}
			return around(lis), nil
		}
	}
}

// chmodded gives the socket a mode and a group; own refuses other users all the
// same.
func chmodded(mode os.FileMode, gid int, own bool) func(*testing.T, *world) {
	return func(t *testing.T, w *world) {
		// The directories of tests are closed to others.
		if err := os.Chmod(filepath.Dir(filepath.Dir(w.socket)), 0o711); err != nil {
			t.Fatal(err)
		}
		w.listen = func(socket string) (net.Listener, error) {
			lis, err := listen(socket)
			if err != nil {
				return nil, err
			}
			if gid != 0 {
				err = os.Chown(socket, -1, gid)
			}
			if err = errors.Join(err, os.Chmod(socket, mode)); err != nil {
				return nil, err
			}
			if own {
				lis = ownListener{lis}
			}
			return lis, nil
		}
	}
}

// ownListener serves processes of our own user alone.
type ownListener struct{ net.Listener }

func (l ownListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		raw, err := conn.(*net.UnixConn).SyscallConn()
		if err != nil {
			return nil, err
		}
		own := false
		raw.Control(func(fd uintptr) {
			cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
			own = err == nil && int(cred.Uid) == os.Geteuid()
		})
		if own {
			return conn, nil
		}
		conn.Close()
	}
}

// crowdedListener closes connections beyond a number of open ones.
type crowdedListener struct {
	net.Listener
	most int32
	open atomic.Int32
}

func (l *crowdedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if l.open.Add(1) <= l.most {
			return &countedConn{Conn: conn, open: &l.open}, nil
		}
		l.open.Add(-1)
		conn.Close()
	}
}

type countedConn struct {
	net.Conn
	open *atomic.Int32
	once sync.Once
}

func (c *countedConn) Close() error {
	c.once.Do(func() { c.open.Add(-1) })
	return c.Conn.Close()
}

// patientListener reads the first byte of a client before it accepts the next.
type patientListener struct{ net.Listener }

func (l patientListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		first := make([]byte, 1)
		if _, err := io.ReadFull(conn, first); err == nil {
			return &peekedConn{Conn: conn, first: first}, nil
		}
		conn.Close()
	}
}

type peekedConn struct {
	net.Conn
	first []byte
}

func (c *peekedConn) Read(b []byte) (int, error) {
	if len(c.first) > 0 && len(b) > 0 {
		b[0], c.first = c.first[0], nil
		return 1, nil
	}
	return c.Conn.Read(b)
}

// diesOfEmptyInput ends all connections, as a process that panics does whose
// supervisor starts it again.
func diesOfEmptyInput(_ *testing.T, w *world) {
	var mu sync.Mutex
	var open []net.Conn
	listening(func(lis net.Listener) net.Listener {
		return onAccept{lis, func(c net.Conn) {
			mu.Lock()
			defer mu.Unlock()
			open = append(open, c)
		}}
	})(nil, w)
	die := func(empty bool) {
		mu.Lock()
		defer mu.Unlock()
		for ; empty && len(open) > 0; open = open[1:] {
			open[0].Close()
		}
	}
	w.opts = append(w.opts, grpc.UnaryInterceptor(func(ctx context.Context, r any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		switch r := r.(type) {
		case *v2.EncryptRequest:
			die(len(r.Plaintext) == 0)
		case *v2.DecryptRequest:
			die(len(r.Ciphertext) == 0)
		}
		return next(ctx, r)
	}))
}

type onAccept struct {
	net.Listener
	do func(net.Conn)
}

func (l onAccept) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err == nil {
		l.do(conn)
	}
	return conn, err
}

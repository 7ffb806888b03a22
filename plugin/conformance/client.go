package conformance

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	v2 "k8s.io/kms/apis/v2"
)

// target is a socket.
type target struct {
	path     string // of the socket file, or "@" and an abstract name
	abstract bool
}

func parseEndpoint(endpoint string) (target, error) {
	rest, ok := strings.CutPrefix(endpoint, "unix:")
	rest = strings.TrimPrefix(rest, "//")
	rest = strings.Replace(rest, "/@", "@", 1) // kube-apiserver's way to write an abstract one
	switch {
	case ok && len(rest) > 1 && rest[0] == '@':
		return target{rest, true}, nil
	case ok && len(rest) > 1 && rest[0] == '/':
		return target{rest, false}, nil
	}
	return target{}, fmt.Errorf("endpoint %q: KMS v2 is served on a unix socket; write unix:///PATH", endpoint)
}

// url is how an EncryptionConfiguration names the socket.
func (t target) url() string {
	if t.abstract {
		return "unix:///" + t.path
	}
	return "unix://" + t.path
}

// dialRaw connects and sends nothing.
func (t target) dialRaw(ctx context.Context) (*net.UnixConn, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "unix", t.path)
	if err != nil {
		return nil, err
	}
	return conn.(*net.UnixConn), nil
}

// client is a gRPC connection of its own, made as kube-apiserver makes it: each
// call waits for a socket that is not there, and ends after 3 s.
type client struct {
	v2.KeyManagementServiceClient
	conn    *grpc.ClientConn
	dropped atomic.Int32 // connections that the other end closed
	uids    atomic.Uint64
}

func (s *session) dial() (*client, error) { return s.target.dial(&s.messages) }

// dial makes a client that keeps the texts of errors.
func (t target) dial(m *messages) (*client, error) {
	c := &client{}
	conn, err := grpc.NewClient("passthrough:///localhost",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true), grpc.MaxCallRecvMsgSize(64<<20)),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.5, Jitter: .2, MaxDelay: time.Second},
			MinConnectTimeout: callTimeout,
		}),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			conn, err := t.dialRaw(ctx)
			if err != nil {
				return nil, err
			}
			return &watchedConn{Conn: conn, dropped: &c.dropped}, nil
		}),
		grpc.WithUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, call grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			ctx, cancel := context.WithTimeout(ctx, callTimeout)
			defer cancel()
			c.setUID(req)
			err := call(ctx, method, req, reply, cc, opts...)
			m.add(method, err)
			return err
		}))
	if err != nil {
		return nil, fmt.Errorf("making a gRPC client: %w", err)
	}
	c.conn, c.KeyManagementServiceClient = conn, v2.NewKeyManagementServiceClient(conn)
	return c, nil
}

// setUID gives an Encrypt or Decrypt what kube-apiserver sends with it: a UUID
// of its own.
func (c *client) setUID(req any) {
	uid := fmt.Sprintf("c0ffee00-0000-4000-a000-%012x", c.uids.Add(1))
	switch r := req.(type) {
	case *v2.EncryptRequest:
		r.Uid = uid
	case *v2.DecryptRequest:
		r.Uid = uid
	}
}

func (c *client) Close() { c.conn.Close() }

// Status is the call without options, which no check needs.
func (c *client) Status(ctx context.Context) (*v2.StatusResponse, error) {
	st, err := c.KeyManagementServiceClient.Status(ctx, &v2.StatusRequest{})
	if err != nil {
		return nil, fmt.Errorf("Status answered %w", err)
	}
	return st, nil
}

// watchedConn tells of a connection that ended without our doing.
type watchedConn struct {
	net.Conn
	dropped *atomic.Int32
	closed  atomic.Bool
	once    sync.Once
}

func (w *watchedConn) Read(b []byte) (int, error) {
	n, err := w.Conn.Read(b)
	if err != nil && !w.closed.Load() && !errors.Is(err, net.ErrClosed) {
		w.once.Do(func() { w.dropped.Add(1) })
	}
	return n, err
}

func (w *watchedConn) Close() error {
	w.closed.Store(true)
	return w.Conn.Close()
}

// with gives f a connection of its own.
func (s *session) with(f func(*client) error) error {
	c, err := s.dial()
	if err != nil {
		return err
	}
	defer c.Close()
	return f(c)
}

// withAlive is with for calls that may be refused and must not end the process:
// one that is started anew at once would look well.
func (s *session) withAlive(what string, f func(c *client) error) error {
	return s.with(func(c *client) error {
		err := f(c)
		if err == nil && c.dropped.Load() > 0 {
			err = breachf("%s ended the connection, as a plugin does that crashes; answer with an error", what)
		}
		return err
	})
}

// serves tells whether the plugin works for those who come now and for those who
// are there: what a hostile client must not have ended.
func (s *session) serves(ctx context.Context) error {
	rec, err := s.encrypt(ctx, s.conn, s.seed())
	if err != nil {
		return err
	}
	return s.with(func(c *client) error {
		if _, err := c.Status(ctx); err != nil {
			return fmt.Errorf("on a new connection %w", err)
		}
		return s.opens(ctx, c, rec)
	})
}

// inParallel calls f for 0 to n-1, so many at once, until one fails.
func inParallel(n, atOnce int, f func(i int) error) error {
	var g errgroup.Group
	g.SetLimit(atOnce)
	var stop atomic.Bool
	for i := range n {
		if stop.Load() {
			break
		}
		g.Go(func() error {
			err := f(i)
			if err != nil {
				stop.Store(true)
			}
			return err
		})
	}
	return g.Wait()
}

// encryptAll encrypts each seed, several at once.
func (s *session) encryptAll(ctx context.Context, seeds [][]byte) ([]record, error) {
	records := make([]record, len(seeds))
	err := inParallel(len(seeds), 16, func(i int) error {
		var err error
		records[i], err = s.encrypt(ctx, s.conn, seeds[i])
		return err
	})
	return records, err
}

// hung tells whether a call took all the time that it had. Its code does not: a
// plugin that waits for the deadline may answer a moment before its client gives
// up, and one that gave up on its KMS in time may call that DeadlineExceeded.
func hung(took time.Duration, err error) bool {
	return err != nil && took >= callTimeout-50*time.Millisecond
}

// took measures f.
func took(f func() error) (time.Duration, error) {
	start := time.Now()
	err := f()
	return time.Since(start), err
}

package plugin

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/recovery"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	v2 "k8s.io/kms/apis/v2"
)

const (
	// maxMessage is the largest request in bytes: the API's limits (1 KiB each of
	// key_id and ciphertext, 32 KiB of annotations) with room to spare.
	maxMessage = 64 << 10

	// maxStreams is how many calls of one connection run at once. kube-apiserver
	// has one connection; a cold start sends thousands of Decrypts, which queue
	// in its client beyond this.
	maxStreams = 1000

	// streamWorkers is how many goroutines wait for calls.
	streamWorkers = 16

	// handshakeTimeout ends a connection that does not say what it wants.
	handshakeTimeout = 5 * time.Second

	// DrainTimeout is how long calls under way have when the daemon ends. A call
	// ends after 2.5 s by itself.
	DrainTimeout = 5 * time.Second
)

// NewServer returns the gRPC server of s with its limits and metrics, ready for
// [Serve]. A panic in a method ends that call alone, with code Internal.
func NewServer(s *Service, m *Metrics, log *slog.Logger) *grpc.Server {
	srv := grpc.NewServer(
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second, PermitWithoutStream: true}),
		// Calls on goroutines whose stacks have grown already save a tenth of the
		// time; those that find no worker free have one of their own as usual.
		grpc.NumStreamWorkers(streamWorkers),
		grpc.WaitForHandlers(true), // when Stop returns, nobody uses the ring any more
		grpc.ChainUnaryInterceptor(
			m.grpc.UnaryServerInterceptor(),
			recovery.UnaryServerInterceptor(recovery.WithRecoveryHandlerContext(recovered(log))),
		),
	)
	v2.RegisterKeyManagementServiceServer(srv, s)
	m.grpc.InitializeMetrics(srv)
	return srv
}

// recovered logs where a panic happened and answers without it. Neither the
// panic's value, which may hold parts of a request, nor the arguments that a
// usual stack trace prints are logged.
func recovered(log *slog.Logger) recovery.RecoveryHandlerFuncContext {
	return func(ctx context.Context, p any) error {
		what := fmt.Sprintf("%T", p)
		if e, ok := p.(runtime.Error); ok {
			what = e.Error()
		}
		method, _ := grpc.Method(ctx)
		log.Error("panic in a method; this is a bug in kube-kek", "method", method, "panic", what, "stack", callers())
		return status.Error(codes.Internal, "internal error; see the log of kube-kek")
	}
}

// callers returns the functions of this goroutine's stack with their lines.
func callers() []string {
	pcs := make([]uintptr, 64)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(2, pcs)])
	var out []string
	for {
		f, more := frames.Next()
		out = append(out, fmt.Sprintf("%s %s:%d", f.Function, f.File, f.Line))
		if !more {
			return out
		}
	}
}

// Serve answers on lis until ctx ends, then stops listening, which removes the
// socket, and gives calls under way the time of drain before it cuts them off.
// It tells systemd READY as soon as it is called: the socket listens by then,
// and a plugin that waits for its KMS is up, or systemd would end it in the very
// outage that it is there for.
func Serve(ctx context.Context, srv *grpc.Server, lis net.Listener, drain time.Duration, log *slog.Logger) error {
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(lis) }()
	notify(daemon.SdNotifyReady, log)
	select {
	case err := <-ended:
		if err == nil {
			return nil // someone else stopped srv
		}
		return fmt.Errorf("serving KMS v2 on %s: %w", lis.Addr(), err)
	case <-ctx.Done():
	}
	notify(daemon.SdNotifyStopping, log)
	cut := time.AfterFunc(drain, srv.Stop)
	defer cut.Stop()
	srv.GracefulStop()
	return nil
}

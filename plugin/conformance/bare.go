package conformance

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	v2 "k8s.io/kms/apis/v2"
)

// bare is a KMS v2 server that does nothing, in this process: what it takes to
// answer is what the machine costs at this moment.
type bare struct {
	*client
	dir string
	srv *grpc.Server
}

func newBare(s *session) (*bare, error) {
	dir, err := os.MkdirTemp("", "conformance-")
	if err != nil {
		return nil, fmt.Errorf("making a socket to compare with: %w", err)
	}
	b := &bare{dir: dir, srv: grpc.NewServer()}
	here := target{path: filepath.Join(dir, "bare.sock")}
	lis, err := net.Listen("unix", here.path)
	if err == nil {
		b.client, err = here.dial(&messages{})
	}
	if err != nil {
		os.RemoveAll(dir)
		return nil, fmt.Errorf("making a socket to compare with: %w", err)
	}
	v2.RegisterKeyManagementServiceServer(b.srv, v2.UnimplementedKeyManagementServiceServer{})
	go b.srv.Serve(lis)
	return b, nil
}

// took measures one call. The bare server has no methods, so it answers
// Unimplemented, which costs what any answer costs.
func (b *bare) took(ctx context.Context) time.Duration {
	d, _ := took(func() error { _, err := b.Status(ctx); return err })
	return d
}

func (b *bare) close() {
	b.Close()
	b.srv.Stop()
	os.RemoveAll(b.dir)
}

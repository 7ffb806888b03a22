package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc"
	v2 "k8s.io/kms/apis/v2"
)

// Shape is how much a plugin answers, so that the baseline answers as much.
type Shape struct {
	KeyID       int            `json:"keyID"`       // bytes
	Ciphertext  int            `json:"ciphertext"`  // bytes; a seed's 32 at least
	Annotations map[string]int `json:"annotations"` // bytes of each value
}

// Shape is that of the record.
func (r Record) Shape() Shape {
	s := Shape{KeyID: len(r.sealed.KeyId), Ciphertext: len(r.sealed.Ciphertext), Annotations: map[string]int{}}
	for name, value := range r.sealed.Annotations {
		s.Annotations[name] = len(value)
	}
	return s
}

// bare encrypts nothing: its ciphertext is the plaintext with zeros behind it, so
// that it can be held to giving it back.
type bare struct {
	v2.UnimplementedKeyManagementServiceServer
	keyID       string
	annotations map[string][]byte
	size        int // of a ciphertext
}

// NewBare returns the baseline service. It must never be given to a kube-apiserver.
func NewBare(s Shape) v2.KeyManagementServiceServer {
	b := &bare{keyID: strings.Repeat("k", s.KeyID), annotations: map[string][]byte{}, size: max(s.Ciphertext, seedSize)}
	for name, n := range s.Annotations {
		b.annotations[name] = make([]byte, n)
	}
	return b
}

func (b *bare) Status(context.Context, *v2.StatusRequest) (*v2.StatusResponse, error) {
	return &v2.StatusResponse{Version: "v2", Healthz: "ok", KeyId: b.keyID}, nil
}

func (b *bare) Encrypt(_ context.Context, r *v2.EncryptRequest) (*v2.EncryptResponse, error) {
	ciphertext := make([]byte, b.size)
	copy(ciphertext, r.Plaintext)
	return &v2.EncryptResponse{Ciphertext: ciphertext, KeyId: b.keyID, Annotations: b.annotations}, nil
}

func (b *bare) Decrypt(_ context.Context, r *v2.DecryptRequest) (*v2.DecryptResponse, error) {
	return &v2.DecryptResponse{Plaintext: r.Ciphertext[:min(seedSize, len(r.Ciphertext))]}, nil
}

// order is what the child process is told on its input, which then stays open for
// as long as it is wanted.
type order struct {
	Socket string `json:"socket"`
	Shape  Shape  `json:"shape"`
}

// ServeBaseline is the child's whole main: it reads its order from in, serves, and
// returns when in ends, which it does with the parent, however that ends.
func ServeBaseline(in io.Reader) error {
	var o order
	d := json.NewDecoder(in)
	if err := d.Decode(&o); err != nil {
		return fmt.Errorf("reading what to serve: %w", err)
	}
	lis, err := net.Listen("unix", o.Socket)
	if err != nil {
		return err
	}
	srv := grpc.NewServer()
	v2.RegisterKeyManagementServiceServer(srv, NewBare(o.Shape))
	go func() {
		io.Copy(io.Discard, in)
		srv.Stop()
	}()
	if err := srv.Serve(lis); !errors.Is(err, grpc.ErrServerStopped) { // stopped before it served
		return err
	}
	return nil
}

// Baseline is a bare service in a process of its own.
type Baseline struct {
	KMS v2.KeyManagementServiceClient

	command []string
	dir     string // with the socket; ours alone
	order   order
	conn    *grpc.ClientConn

	cmd   *exec.Cmd
	hold  io.Closer     // the child's input
	ended chan struct{} // closed when it has ended
}

// StartBaseline runs command, which must call [ServeBaseline] with its standard
// input, and waits until it serves.
func StartBaseline(ctx context.Context, s Shape, command ...string) (*Baseline, error) {
	dir, err := os.MkdirTemp("", "kube-kek-bench-")
	if err != nil {
		return nil, err
	}
	b := &Baseline{command: command, dir: dir, order: order{filepath.Join(dir, "s"), s}}
	if b.conn, err = Dial("unix://" + b.order.Socket); err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	b.KMS = v2.NewKeyManagementServiceClient(b.conn)
	if err := b.start(ctx); err != nil {
		b.Close()
		return nil, err
	}
	return b, nil
}

func (b *Baseline) start(ctx context.Context) error {
	cmd := exec.Command(b.command[0], b.command[1:]...)
	var said strings.Builder
	cmd.Stderr = &said
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting the bare service: %w", err)
	}
	b.cmd, b.hold, b.ended = cmd, in, make(chan struct{})
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	go func(ended chan struct{}) {
		cmd.Wait()
		close(ended)
		cancel() // nobody is left to wait for
	}(b.ended)
	if err = json.NewEncoder(in).Encode(b.order); err == nil {
		err = serving(ctx, b.KMS)
	}
	if err != nil {
		b.stop() // and with it all is said
		return fmt.Errorf("waiting for the bare service: %w: %s", err, strings.TrimSpace(said.String()))
	}
	return nil
}

func (b *Baseline) stop() {
	if b.cmd == nil {
		return
	}
	b.hold.Close()
	<-b.ended
	b.cmd = nil
}

// Restart ends the process and starts another.
func (b *Baseline) Restart(ctx context.Context) error {
	b.stop()
	return b.start(ctx)
}

// Close ends the process and removes its socket.
func (b *Baseline) Close() error {
	b.stop()
	b.conn.Close()
	return os.RemoveAll(b.dir)
}

// Endpoint is where it serves.
func (b *Baseline) Endpoint() string { return "unix://" + b.order.Socket }

package plugin_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	v2 "k8s.io/kms/apis/v2"
)

// activated starts a server as systemd does: with a socket as file descriptor 3
// and LISTEN_PID naming the very process.
func activated(t *testing.T, socket string, files ...*os.File) *process {
	t.Helper()
	return child(t, "serve", socket, func(cmd *exec.Cmd) {
		cmd.Args = []string{"sh", "-c", `LISTEN_PID=$$ exec "$0"`, cmd.Path}
		cmd.Path = "/bin/sh"
		cmd.Env = append(cmd.Env, fmt.Sprintf("LISTEN_FDS=%d", len(files)))
		cmd.ExtraFiles = files
	})
}

func fileOf(t *testing.T, lis any) *os.File {
	t.Helper()
	f, err := lis.(interface{ File() (*os.File, error) }).File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestASocketPassedBySystemdIsServedAndStays(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kek.sock")
	lis, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	for range 2 { // a restart finds the same socket
		p := activated(t, path, fileOf(t, lis))
		if got := p.line(t); got != "listening" {
			t.Fatal(got)
		}
		if _, err := dial(t, path).Status(t.Context(), &v2.StatusRequest{}); err != nil {
			t.Error(err)
		}
		p.stdin.Close()
		if err := p.Wait(); err != nil {
			t.Error(err)
		}
		mustLstat(t, path)
	}
}

func TestASocketPassedBySystemdMustBeTheRightOne(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "kek.sock")
	stream, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	abstract, err := net.Listen("unix", "@kube-kek-test-"+filepath.Base(filepath.Dir(dir)))
	if err != nil {
		t.Fatal(err)
	}
	defer abstract.Close()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	datagrams, err := net.ListenPacket("unixgram", filepath.Join(dir, "dgram"))
	if err != nil {
		t.Fatal(err)
	}
	defer datagrams.Close()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	connected := os.NewFile(uintptr(pair[0]), "connected")
	defer connected.Close()
	defer unix.Close(pair[1])

	for _, tt := range []struct {
		name  string
		path  string
		files []*os.File
		want  string
	}{
		{"a TCP socket", path, []*os.File{fileOf(t, tcp)}, "not a unix stream socket"},
		{"a datagram socket", path, []*os.File{fileOf(t, datagrams)}, "not a unix stream socket"},
		{"a connection", path, []*os.File{connected}, "not a unix stream socket"},
		{"an abstract socket", "", []*os.File{fileOf(t, abstract)}, "abstract"},
		{"another path", path + "2", []*os.File{fileOf(t, stream)}, "socket.path is " + path + "2"},
		{"two sockets", path, []*os.File{fileOf(t, stream), fileOf(t, tcp)}, "2 sockets"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := activated(t, tt.path, tt.files...).line(t); !strings.Contains(got, tt.want) {
				t.Errorf("got %q, want an error with %q", got, tt.want)
			}
		})
	}
}

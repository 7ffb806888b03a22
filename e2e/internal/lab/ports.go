package lab

import (
	"net"
	"strconv"

	"golang.org/x/sys/unix"
)

const loopback = "127.0.0.1"

// reservePort asks the kernel for a free port and keeps it for the life of the
// lab, by a socket that is bound with SO_REUSEPORT and never listens. A server
// that sets SO_REUSEPORT too (etcd and kube-apiserver can) may use it, again
// after each restart, and nobody else gets it.
func (l *Lab) reservePort() int {
	l.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		l.Fatalf("reserving a port: %v", err)
	}
	l.Cleanup(func() { unix.Close(fd) })
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
		l.Fatalf("reserving a port: %v", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		l.Fatalf("reserving a port: %v", err)
	}
	addr, err := unix.Getsockname(fd)
	if err != nil {
		l.Fatalf("reserving a port: %v", err)
	}
	return addr.(*unix.SockaddrInet4).Port
}

// freePort asks the kernel for a port that is free now, for servers that cannot
// share one.
func (l *Lab) freePort() int {
	l.Helper()
	listener, err := net.Listen("tcp", loopback+":0")
	if err != nil {
		l.Fatalf("asking for a free port: %v", err)
	}
	defer listener.Close()
	return listener.Addr().(*net.TCPAddr).Port
}

func portOf(port int) string { return strconv.Itoa(port) }

func address(port int) string { return net.JoinHostPort(loopback, portOf(port)) }

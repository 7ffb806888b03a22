package main

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const endpointUsage = "`URL` of the plugin's socket, as in the EncryptionConfiguration: unix:///PATH"

// reach tells whether somebody listens at the endpoint, and if not, what to do. The
// target is the endpoint as gRPC writes it. An abstract socket (unix:///@NAME for
// kube-apiserver, unix:@NAME for gRPC) is reached too: conformance says what is
// wrong with it.
func reach(endpoint string) (target string, err error) {
	path, ok := strings.CutPrefix(endpoint, "unix:")
	path = strings.Replace(strings.TrimPrefix(path, "//"), "/@", "@", 1)
	switch {
	case ok && strings.HasPrefix(path, "/"):
		target = "unix://" + path
	case ok && strings.HasPrefix(path, "@"):
		target = "unix:" + path
	default:
		return "", fmt.Errorf("--endpoint must be unix:///ABSOLUTE/PATH, not %q", endpoint)
	}
	conn, err := net.DialTimeout("unix", path, 3*time.Second)
	if err == nil {
		conn.Close()
		return target, nil
	}
	return "", whyNot(path, err)
}

// whyNot says what a connection that failed means.
func whyNot(path string, err error) error {
	switch {
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("there is no socket at %s: is the plugin running, and is this its path?", path)
	case errors.Is(err, unix.ECONNREFUSED):
		return fmt.Errorf("nobody listens at %s: the plugin that made this socket has ended", path)
	case errors.Is(err, unix.EACCES):
		return fmt.Errorf("this user may not connect to %s: run it as the one that kube-apiserver runs as", path)
	}
	return fmt.Errorf("connecting to %s: %w", path, err)
}

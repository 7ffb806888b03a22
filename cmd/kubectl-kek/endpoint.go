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

// reach tells whether somebody listens at the endpoint, and if not, what to do.
func reach(endpoint string) error {
	path, ok := strings.CutPrefix(endpoint, "unix://")
	if !ok || !strings.HasPrefix(path, "/") {
		return fmt.Errorf("--endpoint must be unix:///ABSOLUTE/PATH, not %q", endpoint)
	}
	conn, err := net.DialTimeout("unix", path, 3*time.Second)
	switch {
	case err == nil:
		return conn.Close()
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("there is no socket at %s: is the plugin running, and is this its path?", path)
	case errors.Is(err, unix.ECONNREFUSED):
		return fmt.Errorf("nobody listens at %s: the plugin that made this socket has ended", path)
	case errors.Is(err, unix.EACCES):
		return fmt.Errorf("this user may not connect to %s: run it as the one that kube-apiserver runs as", path)
	}
	return fmt.Errorf("connecting to %s: %w", path, err)
}

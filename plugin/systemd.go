package plugin

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"
)

// passedSocket returns the socket that systemd passed to this process
// (sd_listen_fds(3)), nil where there is none. Its file is systemd's and is not
// removed on Close. The environment variables are unset, so that no child takes
// them for its own.
func passedSocket(path string) (net.Listener, error) {
	files := activation.Files(true)
	defer func() {
		for _, f := range files {
			f.Close() // net.FileListener has a duplicate
		}
	}()
	if len(files) == 0 {
		return nil, nil
	}
	if len(files) > 1 {
		return nil, fmt.Errorf("systemd passed %d sockets, not one: give the .socket unit a single ListenStream=", len(files))
	}
	if err := checkPassed(files[0], path); err != nil {
		return nil, fmt.Errorf("the socket that systemd passed: %w", err)
	}
	lis, err := net.FileListener(files[0])
	if err != nil {
		return nil, fmt.Errorf("the socket that systemd passed: %w", err)
	}
	if ul, ok := lis.(*net.UnixListener); ok {
		ul.SetUnlinkOnClose(false)
	}
	return lis, nil
}

func checkPassed(f *os.File, path string) error {
	fd := int(f.Fd())
	for _, want := range []struct{ option, value int }{
		{unix.SO_DOMAIN, unix.AF_UNIX},
		{unix.SO_TYPE, unix.SOCK_STREAM},
		{unix.SO_ACCEPTCONN, 1},
	} {
		got, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, want.option)
		if err != nil {
			return err
		}
		if got != want.value {
			return errors.New("not a unix stream socket that listens: use ListenStream= with a path")
		}
	}
	addr, err := unix.Getsockname(fd)
	if err != nil {
		return err
	}
	name := addr.(*unix.SockaddrUnix).Name
	if name == "" || strings.HasPrefix(name, "@") {
		return fmt.Errorf("%q is abstract: it has no file mode, so any process on the node could connect; use ListenStream= with a path", name)
	}
	if path != "" && path != name {
		return fmt.Errorf("it is %s, but socket.path is %s: make them the same", name, path)
	}
	return CheckSocketPath(name)
}

// notify tells systemd of a change of state (sd_notify(3)), if it asked to be told.
func notify(state string, log *slog.Logger) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Warn("telling systemd", "state", state, "error", err.Error())
	}
}

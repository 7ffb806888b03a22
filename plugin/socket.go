package plugin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// maxSocketPath is the longest path of a unix socket in bytes: sun_path holds
// 108 with the NUL behind it (unix(7)).
const maxSocketPath = 107

// SocketConfig says where the service listens and for whom.
type SocketConfig struct {
	// Path is absolute, at most 107 bytes, in a directory that exists, is no
	// symbolic link, belongs to root or us, and is writable by its owner only.
	// Where systemd passes a socket, it is that socket's path, or "".
	Path string

	// Mode of the socket file, whatever the umask; no bits beyond 0660. 0 is 0600.
	Mode fs.FileMode

	// UID and GID own the socket file. -1 leaves ours.
	UID, GID int

	// AllowedUIDs are the users whose processes may connect. None is {0}: root
	// alone, as whom kube-apiserver runs in most clusters.
	AllowedUIDs []uint32

	// OnRefused is called for each refused connection, e.g. [Metrics.PeerRefused].
	OnRefused func()

	// Logger hears of refused peers, of a dead socket taken over. nil discards.
	Logger *slog.Logger
}

// Listen returns the listener of the service: the socket that systemd passed
// (LISTEN_FDS, sd_listen_fds(3)), else one made at Path. It accepts only
// connections of AllowedUIDs.
//
// A socket file that nobody listens on, left by a killed daemon, is taken over.
// One that answers, and a file that is no socket, is an error and stays. A lock
// on Path + ".lock", held until Close, keeps two daemons that start together
// from taking over each other's; the empty lock file itself stays, because to
// remove it would undo that.
//
// Close removes the socket file if it is still ours.
func Listen(c SocketConfig) (net.Listener, error) {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	passed, err := passedSocket(c.Path)
	if err != nil {
		return nil, err
	}
	if passed != nil {
		return newPeerListener(passed, c), nil
	}
	if err := CheckSocketPath(c.Path); err != nil {
		return nil, err
	}
	if c.Mode == 0 {
		c.Mode = 0o600
	}
	if c.Mode&^0o660 != 0 {
		return nil, fmt.Errorf("socket %s: mode %#o gives more than 0660; only its owner and group may use it", c.Path, c.Mode)
	}
	lis, err := listenAt(c)
	if err != nil {
		return nil, err
	}
	return newPeerListener(lis, c), nil
}

// CheckSocketPath tells whether a socket may be made at path: the path's form,
// and its directory's type, owner and mode.
func CheckSocketPath(path string) error {
	switch {
	case path == "":
		return errors.New("no path for the socket")
	case path[0] == '@' || strings.Contains(path, "\x00"):
		return fmt.Errorf("socket %q: abstract sockets have no file mode, so any process on the node could connect; use a path", path)
	case !filepath.IsAbs(path):
		return fmt.Errorf("socket %q: the path must be absolute", path)
	case path != filepath.Clean(path):
		return fmt.Errorf("socket %q: write the path as %s", path, filepath.Clean(path))
	case len(path) > maxSocketPath:
		return fmt.Errorf("socket %s: the path has %d bytes, at most %d", path, len(path), maxSocketPath)
	}
	dir := filepath.Dir(path)
	info, err := os.Lstat(dir)
	if err != nil {
		return fmt.Errorf("socket %s: its directory: %w", path, err)
	}
	if info.Mode()&fs.ModeSymlink != 0 {
		return fmt.Errorf("socket %s: its directory %s is a symbolic link; name the directory itself", path, dir)
	}
	if !info.IsDir() {
		return fmt.Errorf("socket %s: %s is not a directory", path, dir)
	}
	if err := checkOwnerAndMode(info); err != nil {
		return fmt.Errorf("socket %s: its directory %s: %w", path, dir, err)
	}
	return checkAncestors(path, filepath.Dir(dir))
}

// checkAncestors refuses a directory above the socket's in which another user
// could put a directory of the same name in its place.
func checkAncestors(path, dir string) error {
	for ; ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil {
			return fmt.Errorf("socket %s: the directory %s above it: %w", path, dir, err)
		}
		if err := checkOwnerAndMode(info); err != nil && info.Mode()&fs.ModeSticky == 0 {
			return fmt.Errorf("socket %s: the directory %s above it: %w", path, dir, err)
		}
		if dir == "/" {
			return nil
		}
	}
}

func ownerOf(info fs.FileInfo) uint32 { return info.Sys().(*syscall.Stat_t).Uid }

func listenAt(c SocketConfig) (_ net.Listener, err error) {
	lock, err := lockBeside(c.Path)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			lock.Close()
		}
	}()
	if err := removeDead(c); err != nil {
		return nil, err
	}

	// The file is born with the mode that the unbound socket has, less the
	// umask, so it is never wider than this, and the process-wide umask need
	// not be touched.
	born := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var modeErr error
		if err := raw.Control(func(fd uintptr) { modeErr = unix.Fchmod(int(fd), uint32(c.Mode&0o600)) }); err != nil {
			return err
		}
		return modeErr
	}}
	lis, err := born.Listen(context.Background(), "unix", c.Path)
	if err != nil {
		return nil, fmt.Errorf("listening: %w", err)
	}
	ul := lis.(*net.UnixListener)
	ul.SetUnlinkOnClose(false) // it would remove whatever is there by then
	s := &socket{UnixListener: ul, path: c.Path, lock: lock}
	if s.info, err = os.Lstat(c.Path); err == nil && (c.UID != -1 || c.GID != -1) {
		err = os.Lchown(c.Path, c.UID, c.GID)
	}
	if err == nil {
		err = os.Chmod(c.Path, c.Mode)
	}
	if err != nil {
		s.Close()
		return nil, fmt.Errorf("setting owner and mode of socket: %w", err)
	}
	return s, nil
}

// lockBeside takes the lock that whoever listens at path holds.
func lockBeside(path string) (*os.File, error) {
	name := path + ".lock"
	lock, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, fmt.Errorf("socket %s: its lock: %w", path, err)
	}
	err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return lock, nil
	}
	lock.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		pid, _ := listenerAt(path)
		return nil, fmt.Errorf("socket %s is in use by another kube-kek%s: stop it, or give this one another socket.path", path, pid)
	}
	return nil, fmt.Errorf("socket %s: locking %s: %w", path, name, err)
}

// removeDead makes room at the path. It is called with the lock held.
func removeDead(c SocketConfig) error {
	info, err := os.Lstat(c.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("looking at socket: %w", err)
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("socket %s: there is a file that is no socket (%s); it was left alone", c.Path, info.Mode())
	}
	pid, err := listenerAt(c.Path)
	switch {
	case err == nil, errors.Is(err, unix.EAGAIN): // EAGAIN: alive, but its queue is full
		return fmt.Errorf("socket %s is in use%s: stop that process, or give this one another socket.path", c.Path, pid)
	case errors.Is(err, unix.ECONNREFUSED):
		c.Logger.Info("taking over a socket that nobody listens on", "path", c.Path)
	case errors.Is(err, fs.ErrNotExist):
		return nil
	default:
		return fmt.Errorf("socket %s: finding out whether anyone listens on it: %w", c.Path, err)
	}
	if err := os.Remove(c.Path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing dead socket: %w", err)
	}
	return nil
}

// listenerAt connects to a socket and tells who listens, as " by PID n" for an
// error's text, "" where it is not known.
func listenerAt(path string) (pid string, err error) {
	conn, err := net.DialTimeout("unix", path, time.Second)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if cred, err := peerOf(conn); err == nil && cred.Pid != 0 {
		return fmt.Sprintf(" (PID %d)", cred.Pid), nil
	}
	return "", nil
}

// socket is a listener at a path of ours.
type socket struct {
	*net.UnixListener
	path string
	info fs.FileInfo // of the file as it was made; nil if that is not known
	lock *os.File
	once sync.Once
	err  error
}

// Close removes the socket file, if it is still the one that was made, stops
// listening and gives the lock back, in this order: while the socket is open its
// inode cannot be another file's.
func (s *socket) Close() error {
	s.once.Do(func() {
		if now, err := os.Lstat(s.path); err == nil && s.info != nil && os.SameFile(now, s.info) {
			s.err = os.Remove(s.path)
		}
		s.err = errors.Join(s.err, s.UnixListener.Close(), s.lock.Close())
	})
	return s.err
}

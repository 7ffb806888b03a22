package conformance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

var socketChecks = []check{
	{Info: Info{
		Name: "socket-path", Level: Should, Source: ours + "; unix(7)",
		About: "The socket is a file and no abstract one, which has no mode: any process in the network namespace may use it.",
	}, run: socketPath},
	{Info: Info{
		Name: "socket-mode", Level: Should, Source: ours,
		About: "The socket's file is not open to other users than its owner and group.",
	}, run: socketMode},
	{Info: Info{
		Name: "socket-owner", Level: Advice, Source: ours,
		About: "The socket's file belongs to root or to the user who listens.",
	}, run: socketOwner},
	{Info: Info{
		Name: "socket-directory", Level: Should, Source: ours,
		About: "The socket's directory belongs to root or to the user who listens, and group and others may not write to it: they could put a socket of theirs in its place.",
	}, run: socketDirectory},
	{Info: Info{
		Name: "other-user", Level: Should, Source: ours,
		About: "A process of another user than root is not served.",
	}, run: otherUser},
}

const abstractSkip = skip("the socket is abstract; see socket-path")

func socketPath(_ context.Context, s *session) (string, error) {
	if s.abstract {
		return "", breachf("the endpoint %s is an abstract socket; it has no file mode, so any process on the node that shares the network namespace may decrypt", s.report.Endpoint)
	}
	return "the socket is " + s.path, nil
}

// stat returns the mode and owner of a file.
func stat(path string) (fs.FileInfo, uint32, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, 0, skipf("looking at %s: %v", path, err)
	}
	return info, info.Sys().(*syscall.Stat_t).Uid, nil
}

func socketMode(_ context.Context, s *session) (string, error) {
	if s.abstract {
		return "", abstractSkip
	}
	info, _, err := stat(s.path)
	if err != nil {
		return "", err
	}
	if info.Mode().Perm()&0o002 != 0 {
		return "", breachf("the mode of %s is %s: any user of the node may decrypt; give it 0600", s.path, info.Mode())
	}
	return "the mode is " + info.Mode().String(), nil
}

func socketOwner(ctx context.Context, s *session) (string, error) {
	if s.abstract {
		return "", abstractSkip
	}
	_, uid, err := stat(s.path)
	if err != nil {
		return "", err
	}
	cred, err := s.listener(ctx)
	if err != nil {
		return "", err
	}
	if uid != 0 && uid != cred.Uid {
		return "", breachf("%s belongs to UID %d, but UID %d listens on it", s.path, uid, cred.Uid)
	}
	return fmt.Sprintf("UID %d owns it, UID %d listens", uid, cred.Uid), nil
}

func socketDirectory(ctx context.Context, s *session) (string, error) {
	if s.abstract {
		return "", abstractSkip
	}
	dir := filepath.Dir(s.path)
	info, uid, err := stat(dir)
	if err != nil {
		return "", err
	}
	cred, err := s.listener(ctx)
	if err != nil {
		return "", err
	}
	if info.Mode().Perm()&0o022 != 0 {
		return "", breachf("the mode of %s is %s: others than its owner may put a socket of theirs there; give the socket a directory with 0755 or less", dir, info.Mode())
	}
	if uid != 0 && uid != cred.Uid {
		return "", breachf("%s belongs to UID %d, who may put a socket of theirs there; UID %d listens", dir, uid, cred.Uid)
	}
	return fmt.Sprintf("%s: mode %s, UID %d", dir, info.Mode(), uid), nil
}

// listener returns the credentials of the process that listens, as the kernel
// took them when it began to.
func (t target) listener(ctx context.Context) (*unix.Ucred, error) {
	conn, err := t.dialRaw(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) { cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return nil, err
	}
	if credErr != nil {
		return nil, skipf("asking for who listens (SO_PEERCRED): %v", credErr)
	}
	return cred, nil
}

// otherUser connects on a thread of another user, and tells whether the plugin
// speaks to it: a gRPC server greets a client with its settings.
func otherUser(ctx context.Context, s *session) (string, error) {
	if os.Geteuid() != 0 {
		return "", skipf("only root can become another user")
	}
	conn, err := dialAs(s.path, int(s.o.CallerUID))
	if errors.Is(err, syscall.EACCES) || errors.Is(err, syscall.EPERM) {
		return fmt.Sprintf("UID %d may not connect: %v", s.o.CallerUID, err), nil
	}
	if err != nil {
		return "", skipf("connecting as UID %d: %v", s.o.CallerUID, err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(callTimeout))
	// A peer that refuses may close before this is written.
	io.WriteString(conn, preface+settingsFrame)
	if n, _ := conn.Read(make([]byte, 64)); n > 0 {
		return "", breachf("a process of UID %d connected and was greeted as a client; refuse it by the socket's mode or its peer credentials (SO_PEERCRED)", s.o.CallerUID)
	}
	return fmt.Sprintf("UID %d could connect but was told nothing", s.o.CallerUID), nil
}

// dialAs connects on an operating system thread that becomes another user for
// good and ends with it. The raw system calls change that thread alone.
func dialAs(path string, id int) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with this goroutine
		conn, err := func() (net.Conn, error) {
			if _, _, e := syscall.RawSyscall(syscall.SYS_SETGROUPS, 0, 0, 0); e != 0 {
				return nil, fmt.Errorf("dropping groups: %w", e)
			}
			for _, call := range []uintptr{syscall.SYS_SETRESGID, syscall.SYS_SETRESUID} {
				if _, _, e := syscall.RawSyscall(call, uintptr(id), uintptr(id), uintptr(id)); e != 0 {
					return nil, fmt.Errorf("becoming UID and GID %d: %v", id, e)
				}
			}
			return net.DialTimeout("unix", path, callTimeout)
		}()
		done <- result{conn, err}
	}()
	r := <-done
	return r.conn, r.err
}

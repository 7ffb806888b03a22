package plugin_test

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kube-kek/kube-kek/plugin"
)

func mustLstat(t *testing.T, path string) fs.FileInfo {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info
}

func wantListenError(t *testing.T, c plugin.SocketConfig, want string) {
	t.Helper()
	lis, err := plugin.Listen(c)
	if err == nil {
		lis.Close()
		t.Fatalf("listening at %q: no error, want one with %q", c.Path, want)
	}
	if !strings.Contains(err.Error(), want) {
		t.Errorf("listening at %q: %v, want an error with %q", c.Path, err, want)
	}
}

func TestTheSocketHasItsModeWhateverTheUmask(t *testing.T) {
	for _, umask := range []int{0, 0o077, 0o777} {
		for _, mode := range []fs.FileMode{0, 0o600, 0o660} {
			want := mode
			if want == 0 {
				want = 0o600
			}
			old := syscall.Umask(umask)
			c := ours(filepath.Join(tempDir(t), "kek.sock"))
			c.Mode = mode
			lis, err := plugin.Listen(c)
			syscall.Umask(old)
			if err != nil {
				t.Fatalf("umask %#o, mode %#o: %v", umask, mode, err)
			}
			if got := mustLstat(t, c.Path).Mode(); got != want|fs.ModeSocket {
				t.Errorf("umask %#o, mode %#o: the socket has %s", umask, mode, got)
			}
			lis.Close()
		}
	}
}

func TestTheSocketIsAtNoMomentWiderThanItsMode(t *testing.T) {
	path := filepath.Join(tempDir(t), "kek.sock")
	defer syscall.Umask(syscall.Umask(0))
	stop := make(chan struct{})
	var watcher sync.WaitGroup
	watcher.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if info, err := os.Lstat(path); err == nil && info.Mode().Perm()&^0o600 != 0 {
				t.Errorf("seen with mode %s", info.Mode())
				return
			}
		}
	})
	for range 500 {
		listen(t, path).Close()
	}
	close(stop)
	watcher.Wait()
}

// tempDir is made with a mode of its own, since the test sets the umask.
func tempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "kek")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestTheSocketHasItsOwner(t *testing.T) {
	c := ours(filepath.Join(t.TempDir(), "kek.sock"))
	c.UID, c.GID = os.Geteuid(), os.Getegid()
	if os.Geteuid() == 0 {
		c.UID, c.GID = 65534, 65533
	}
	lis, err := plugin.Listen(c)
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	st := mustLstat(t, c.Path).Sys().(*syscall.Stat_t)
	if int(st.Uid) != c.UID || int(st.Gid) != c.GID {
		t.Errorf("owner %d:%d, want %d:%d", st.Uid, st.Gid, c.UID, c.GID)
	}
}

func TestPathsThatAreNoPlaceForASocketAreRefused(t *testing.T) {
	dir := t.TempDir()
	at := func(parts ...string) string { return filepath.Join(append([]string{dir}, parts...)...) }
	for name, mode := range map[string]fs.FileMode{"group-writable": 0o770, "sticky": 0o777 | fs.ModeSticky, "good": 0o700} {
		if err := os.Mkdir(at(name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(at(name), mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("good", at("link")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(at("file"), []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("file", at("good", "kek.sock")); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ name, path, want string }{
		{"no path", "", "no path"},
		{"an abstract socket", "@kube-kek", "abstract"},
		{"an abstract socket, spelled out", "\x00kube-kek", "abstract"},
		{"a NUL in the path", at("good", "a\x00b"), "abstract"},
		{"a relative path", "kek.sock", "must be absolute"},
		{"a path not in its shortest form", dir + "/good/../kek.sock", "write the path as " + at("kek.sock")},
		{"a path of 108 bytes", "/" + strings.Repeat("x", 107), "108 bytes, at most 107"},
		{"no directory", at("none", "kek.sock"), "no such file"},
		{"a file as directory", at("file", "kek.sock"), "not a directory"},
		{"a symbolic link as directory", at("link", "kek.sock"), "symbolic link"},
		{"a directory that its group can write to", at("group-writable", "kek.sock"), "group or others write"},
		{"a directory like /tmp", at("sticky", "kek.sock"), "group or others write"},
		{"a file at the path", at("file"), "no socket"},
		{"a directory at the path", at("good"), "no socket"},
		{"a symbolic link at the path", at("good", "kek.sock"), "no socket"},
	} {
		t.Run(tt.name, func(t *testing.T) { wantListenError(t, ours(tt.path), tt.want) })
	}
	if data, err := os.ReadFile(at("file")); err != nil || string(data) != "precious" {
		t.Errorf("the file at the path was not left alone: %q, %v", data, err)
	}

	wide := ours(at("good", "wide.sock"))
	wide.Mode = 0o666
	wantListenError(t, wide, "more than 0660")

	if os.Geteuid() == 0 {
		if err := os.Chown(at("good"), 65534, -1); err != nil {
			t.Fatal(err)
		}
		wantListenError(t, ours(at("good", "other.sock")), "belongs to UID 65534")
	}
}

func TestADirectoryAboveThatOthersMayChangeIsRefused(t *testing.T) {
	above := filepath.Join(tempDir(t), "above")
	dir := filepath.Join(above, "dir")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for mode, want := range map[fs.FileMode]string{
		0o777:                 "lets group or others write",
		0o777 | fs.ModeSticky: "", // as /tmp is: nobody may rename what is not theirs
		0o755:                 "",
	} {
		if err := os.Chmod(above, mode); err != nil {
			t.Fatal(err)
		}
		err := plugin.CheckSocketPath(filepath.Join(dir, "kek.sock"))
		if (err != nil) != (want != "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("a directory of mode %s above: %v, want %q", mode, err, want)
		}
	}
}

func TestAPathOf107BytesWorks(t *testing.T) {
	dir := tempDir(t)
	path := filepath.Join(dir, strings.Repeat("x", 107-len(dir)-1))
	listen(t, path)
	if _, err := net.Dial("unix", path); err != nil {
		t.Error(err)
	}
}

func TestASocketLeftByAKilledDaemonIsTakenOver(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kek.sock")
	first := child(t, "serve", path, nil)
	if got := first.line(t); got != "listening" {
		t.Fatal(got)
	}
	wantListenError(t, ours(path), fmt.Sprintf("socket %s is in use by another kube-kek (PID %d)", path, first.Process.Pid))

	if err := first.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	first.Wait()
	if mustLstat(t, path).Mode().Type() != fs.ModeSocket {
		t.Fatal("the killed daemon left no socket, so this test shows nothing")
	}
	var log logBuffer
	c := ours(path)
	c.Logger = log.logger()
	lis, err := plugin.Listen(c)
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	if log.count("taking over") != 1 {
		t.Errorf("log:\n%s", log.String())
	}
}

func TestALiveSocketOfAnotherProgramIsAnError(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kek.sock")
	other, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	wantListenError(t, ours(path), fmt.Sprintf("socket %s is in use (PID %d)", path, os.Getpid()))
	if _, err := net.Dial("unix", path); err != nil {
		t.Errorf("the live socket was not left alone: %v", err)
	}
}

func TestALiveSocketWhoseQueueIsFullIsNotTakenForDead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kek.sock")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: path}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	for {
		conn, err := net.Dial("unix", path)
		if errors.Is(err, unix.EAGAIN) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	wantListenError(t, ours(path), "is in use")
}

func TestOfManyThatStartTogetherOneListens(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kek.sock")
	for range 20 {
		dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		dead.SetUnlinkOnClose(false)
		dead.Close()

		var wg sync.WaitGroup
		listeners := make([]net.Listener, 8)
		for i := range listeners {
			wg.Go(func() { listeners[i], _ = plugin.Listen(ours(path)) })
		}
		wg.Wait()
		won := 0
		for _, lis := range listeners {
			if lis == nil {
				continue
			}
			won++
			if _, err := net.Dial("unix", path); err != nil {
				t.Errorf("the one that listens cannot be reached: %v", err)
			}
			lis.Close()
		}
		if won != 1 {
			t.Fatalf("%d of %d listen", won, len(listeners))
		}
	}
}

func TestCloseRemovesTheSocketOnlyIfItIsOurs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kek.sock")
	lis := listen(t, path)
	if err := lis.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after Close: %v", err)
	}

	lis = listen(t, path)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	other, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := lis.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := net.Dial("unix", path); err != nil {
		t.Errorf("Close removed another's socket: %v", err)
	}
}

func TestConnectionsOfOtherUsersAreRefused(t *testing.T) {
	var log logBuffer
	refused := 0
	c := ours(filepath.Join(tempDir(t), "kek.sock"))
	c.Mode, c.Logger, c.OnRefused = 0o660, log.logger(), func() { refused++ }
	root := os.Geteuid() == 0
	if !root { // it cannot be another user, so it leaves itself out
		c.AllowedUIDs = []uint32{uint32(os.Geteuid()) + 1}
	}
	lis, err := plugin.Listen(c)
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	accepted := make(chan net.Conn)
	go func() {
		defer close(accepted)
		for {
			conn, err := lis.Accept()
			if err != nil {
				return
			}
			accepted <- conn
		}
	}()

	uid := os.Geteuid()
	if root {
		// Another user needs the file's permission to get as far as Accept.
		uid = 65534
		if err := os.Chmod(c.Path, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		p := child(t, "connect", c.Path, func(cmd *exec.Cmd) { cmd.Env = append(cmd.Env, fmt.Sprintf("%s=%d", uidVar, uid)) })
		if got := p.line(t); got != "bytes: 0" {
			t.Errorf("the other user's connection: %s", got)
		}
	}
	if root {
		conn, err := net.Dial("unix", c.Path)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		(<-accepted).Close()
	}
	lis.Close()
	for conn := range accepted {
		t.Errorf("accepted %v", conn)
	}
	if refused != 3 {
		t.Errorf("counted %d refused, want 3", refused)
	}
	if log.count("refused a connection") != 1 || log.count(fmt.Sprintf(`"uid":%d,"pid":`, uid)) != 1 {
		t.Errorf("want one line with the UID for three refusals:\n%s", log.String())
	}
}

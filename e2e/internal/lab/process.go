package lab

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"github.com/kube-kek/kube-kek/e2e/internal/parts"
)

// A Process is a program that the lab runs. It ends with the lab, and with the
// test binary, however that ends. What it wrote is shown when a test fails.
type Process struct {
	Name string
	Log  string // the file with its stdout and stderr, of all its starts

	cmd  *exec.Cmd
	done chan struct{} // closed when the process has ended
}

// run starts a part. Its environment is env alone, so that nothing of the
// caller's own (AWS credentials, say) gets into a test.
func (l *Lab) run(name string, part parts.Part, env []string, args ...string) *Process {
	l.Helper()
	path := l.part(part)
	p := &Process{Name: name, Log: filepath.Join(l.Dir, name+".log"), done: make(chan struct{})}
	log, err := os.OpenFile(p.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		l.Fatalf("%v", err)
	}
	defer log.Close()
	p.cmd = exec.Command(path, args...)
	p.cmd.Dir, p.cmd.Env, p.cmd.Stdout, p.cmd.Stderr = l.Dir, append([]string{}, env...), log, log
	// A group of its own keeps the terminal's Ctrl-C from it: the lab ends it in
	// its own order.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}

	started := make(chan error)
	go func() {
		// Pdeathsig is sent when the thread that forked ends, so that thread is
		// kept for as long as the process lives.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			p.cmd.Wait()
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		l.Fatalf("starting %s: %v", name, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.processes = append(l.processes, p)
	return p
}

// PID is the process's own, to show that it is still the same one.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Running reports whether the process lives.
func (p *Process) Running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Kill sends SIGKILL and waits for the end.
func (p *Process) Kill() {
	p.cmd.Process.Kill()
	<-p.done
}

// Stop sends SIGTERM, and SIGKILL to a process that is still there 10 s later.
func (p *Process) Stop() {
	p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(10 * time.Second):
		p.Kill()
	}
}

// tail returns the last lines of the log.
func (p *Process) tail(lines int) string {
	log, err := os.ReadFile(p.Log)
	if err != nil {
		return err.Error()
	}
	all := bytes.Split(bytes.TrimSpace(log), []byte("\n"))
	return string(bytes.Join(all[max(0, len(all)-lines):], []byte("\n")))
}

// dump shows the end of each log, once per file.
func (l *Lab) dump() {
	shown := map[string]bool{}
	for _, p := range l.processes {
		if !shown[p.Log] {
			shown[p.Log] = true
			l.Logf("--- the last lines of %s\n%s", p.Name, p.tail(40))
		}
	}
}

// waitFor polls until check returns nil, and ends the test with what and the
// last error if that takes longer than limit or the process ends meanwhile.
func (l *Lab) waitFor(what string, p *Process, limit time.Duration, check func() error) {
	l.Helper()
	if err := poll(limit, func() error {
		if err := l.Context().Err(); err != nil {
			return fatal{err}
		}
		if p != nil && !p.Running() {
			return fatal{fmt.Errorf("%s has ended: %v\n%s", p.Name, p.cmd.ProcessState, p.tail(15))}
		}
		return check()
	}); err != nil {
		l.Fatalf("waiting for %s: %v", what, err)
	}
}

// Eventually polls until check returns nil and returns how long that took. The
// test ends with the last error if it takes longer than limit.
func (l *Lab) Eventually(what string, limit time.Duration, check func() error) time.Duration {
	l.Helper()
	start := time.Now()
	l.waitFor(what, nil, limit, check)
	return time.Since(start)
}

type fatal struct{ error }

func poll(limit time.Duration, check func() error) error {
	deadline := time.Now().Add(limit)
	for {
		err := check()
		if err == nil {
			return nil
		}
		if _, ok := err.(fatal); ok {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not within %s: %w", limit, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

package lab

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"sync"
	"time"
)

// Main runs a lab outside of a test, as a command's main does, and returns the
// command's exit status. What would fail a test ends run and is printed. When
// ctx ends, all that was started is stopped first.
func Main(ctx context.Context, run func(Host)) (status int) {
	h := &command{ctx: ctx}
	done := make(chan struct{})
	go func() {
		defer close(done)
		run(h)
	}()
	select {
	case <-done:
	case <-ctx.Done():
		fmt.Fprintln(os.Stderr, "\ninterrupted: stopping everything")
		select {
		case <-done: // it uses ctx and has noticed
		case <-time.After(5 * time.Second):
		}
	}
	h.mu.Lock()
	cleanups := h.cleanups
	h.mu.Unlock()
	for i := len(cleanups) - 1; i >= 0; i-- {
		cleanups[i]()
	}
	switch {
	case ctx.Err() != nil:
		return 130 // as a shell has it for a command that was interrupted
	case h.Failed():
		return 1
	}
	return 0
}

// command is the Host of a command.
type command struct {
	ctx      context.Context
	mu       sync.Mutex
	cleanups []func()
	failed   bool
}

func (h *command) Helper()                         {}
func (h *command) Context() context.Context        { return h.ctx }
func (h *command) Logf(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

func (h *command) Failed() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.failed
}

func (h *command) Fatalf(format string, args ...any) {
	if h.ctx.Err() == nil { // else it is only the consequence of an interruption
		h.Logf(format, args...)
		h.mu.Lock()
		h.failed = true
		h.mu.Unlock()
	}
	runtime.Goexit()
}

func (h *command) Cleanup(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.cleanups = append(h.cleanups, f)
}

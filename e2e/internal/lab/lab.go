// Package lab runs a control plane for tests: a real etcd, real kube-apiservers,
// the kube-kek daemon, and a stand-in for AWS KMS behind a proxy that makes
// faults. Everything is on loopback, in a folder of its own, and gone with the
// test; any number of labs run side by side.
package lab

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/kube-kek/kube-kek/e2e/internal/parts"
)

// Host is who runs a lab: a *testing.T, or the demo. A lab has no errors to
// return: what it cannot do ends the test and says why.
type Host interface {
	Helper()
	Logf(format string, args ...any)
	Fatalf(format string, args ...any)
	Cleanup(func())
	Context() context.Context
	Failed() bool
}

// A Lab is one etcd and what a test starts around it.
type Lab struct {
	Host
	Dir  string
	Etcd *Etcd

	mu        sync.Mutex
	paths     map[parts.Part]string
	processes []*Process
	apiserver apiserverFiles
	pluginEnv []string // credentials of the plugin
}

// New starts a lab with an etcd in it.
func New(h Host) *Lab {
	h.Helper()
	l := Bare(h)
	l.Etcd = l.startEtcd()
	return l
}

// Bare starts a lab without an etcd, which has no room for an apiserver.
func Bare(h Host) *Lab {
	h.Helper()
	// Not the test's own temporary folder: its name holds the test's, and a unix
	// socket's path must stay below 108 bytes.
	dir, err := os.MkdirTemp("", "kube-kek-lab-")
	if err != nil {
		h.Fatalf("%v", err)
	}
	l := &Lab{Host: h, Dir: dir, paths: map[parts.Part]string{}}
	h.Cleanup(func() {
		if h.Failed() {
			l.dump()
		}
		for _, p := range slices.Backward(l.processes) {
			p.Kill()
		}
		os.RemoveAll(dir)
	})
	return l
}

// part returns the path of a program, built at its first use.
func (l *Lab) part(p parts.Part) string {
	l.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.paths[p] == "" {
		path, err := parts.Path(l.Context(), p)
		if err != nil {
			l.Fatalf("%v", err)
		}
		l.paths[p] = path
	}
	return l.paths[p]
}

// Write puts a file that only we can read into the lab's folder.
func (l *Lab) Write(name string, content []byte) string {
	l.Helper()
	path := filepath.Join(l.Dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		l.Fatalf("%v", err)
	}
	if err := os.WriteFile(path, content, 0o600); err != nil {
		l.Fatalf("%v", err)
	}
	return path
}

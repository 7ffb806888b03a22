package lab

import (
	"path/filepath"

	"github.com/kube-kek/kube-kek/e2e/internal/parts"
)

// Keyset is a Tink keyset file, made and rotated by the daemon's own commands.
type Keyset struct {
	Path string
	lab  *Lab
}

// CreateKeyset makes a keyset in the lab's folder.
func (l *Lab) CreateKeyset(name string) *Keyset {
	l.Helper()
	k := &Keyset{Path: filepath.Join(l.Dir, name), lab: l}
	k.command("create")
	return k
}

// KEK is the keyset in the plugin's configuration.
func (k *Keyset) KEK() KEK { return KEK{URI: "tink-keyset://" + k.Path} }

// Rotate makes a new key the keyset's primary.
func (k *Keyset) Rotate() {
	k.lab.Helper()
	k.command("rotate")
}

func (k *Keyset) command(verb string) {
	k.lab.Helper()
	p := k.lab.run("keyset-"+verb, parts.Daemon, nil, "keyset", verb, k.Path)
	<-p.done
	if !p.cmd.ProcessState.Success() {
		k.lab.Fatalf("kube-kek keyset %s %s: %s\n%s", verb, k.Path, p.cmd.ProcessState, p.tail(10))
	}
}

// Package tinkkeyset is a KEK in a file: a Tink keyset in clear JSON.
//
// It needs no cloud and protects little: whoever reads that file and etcd reads
// every Secret. It keeps Secrets out of etcd's backups and disks as long as the
// file is not beside them. It is for trying out, for labs, and for edge nodes
// whose disk is encrypted.
//
// The file's owner must be the process's user or root, and nobody else may read
// or write it. It is made by [Create] and rotated by [Rotate], or by Tink's own
// tinkey; a change is picked up without a restart. Each wrap is bound to the
// cluster through the AEAD's associated data.
package tinkkeyset

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/kube-kek/kube-kek/kek"
)

// Scheme is the scheme of this home's URIs: tink-keyset:///ABSOLUTE/PATH.
const Scheme = "tink-keyset"

// MaxPath is the longest path in bytes: it is part of every record's key ID,
// which Kubernetes and we keep short.
const MaxPath = 150

// Config says which keyset to use, and for whom.
type Config struct {
	// Path is the keyset's absolute path, in printable ASCII without spaces and
	// at most MaxPath bytes. Cleaned, it is the KeyRef.ID: a keyset that moves is
	// another KEK.
	Path string

	// Binding is bound to every wrap.
	Binding kek.Binding
}

// Provider is a KEK in a keyset file. A version is a key of the keyset, named by
// its Tink key ID in decimal, and the primary is current.
type Provider struct {
	path string
	aad  []byte

	mu    sync.Mutex
	held  *contents // nil until the file was read
	facts kek.Facts
}

// New returns the provider of a keyset. It looks at the path only: what is wrong
// with the file shows in the provider's methods, so that a daemon may start
// before its keyset is there.
func New(c Config) (*Provider, error) {
	path, err := cleanPath(c.Path)
	if err != nil {
		return nil, err
	}
	return &Provider{
		path: path,
		aad:  c.Binding.Bytes(),
		facts: kek.Facts{
			Key:      kek.KeyRef{ID: path},
			Rotation: "by hand: kube-kek keyset rotate " + path,
			Notes: []string{"The keyset lies in clear in " + path + ": whoever reads that file and etcd reads every Secret. " +
				"It is for trying out, labs and edge nodes whose disk is encrypted."},
		},
	}, nil
}

func cleanPath(path string) (string, error) {
	invalid := func(why string) error {
		return fmt.Errorf("keyset path %q: %w: %s", path, kek.Invalid, why)
	}
	switch {
	case path == "":
		return "", invalid("is empty")
	case !filepath.IsAbs(path):
		return "", invalid("must be absolute")
	case strings.HasSuffix(path, "/"):
		return "", invalid("names a directory: give the keyset's file")
	case strings.ContainsFunc(path, func(r rune) bool { return r <= ' ' || r > '~' }):
		return "", invalid("must be printable ASCII without spaces, as it becomes part of the key ID")
	}
	path = filepath.Clean(path)
	if len(path) > MaxPath {
		return "", invalid(fmt.Sprintf("is %d bytes long, want at most %d, as it becomes part of the key ID", len(path), MaxPath))
	}
	return path, nil
}

// Current implements [kek.Provider]. It reads the file.
func (p *Provider) Current(ctx context.Context) (kek.KeyRef, error) {
	c, err := p.load(ctx, true)
	if err == nil {
		err = c.usable(c.primary)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case err == nil:
		p.facts.State, p.facts.Key.Version = kek.StateEnabled, c.primary
	case errors.Is(err, kek.KeyDisabled):
		p.facts.State, p.facts.Key.Version = kek.StateDisabled, c.primary
	}
	if err != nil {
		return kek.KeyRef{}, p.fail(kek.OpCurrent, "", err)
	}
	return kek.KeyRef{ID: p.path, Version: c.primary}, nil
}

// Wrap implements [kek.Provider].
func (p *Provider) Wrap(ctx context.Context, plaintext []byte) (kek.Wrapped, error) {
	c, err := p.load(ctx, false)
	if err != nil {
		return kek.Wrapped{}, p.fail(kek.OpWrap, "", err)
	}
	if err := c.usable(c.primary); err != nil {
		return kek.Wrapped{}, p.fail(kek.OpWrap, c.primary, err)
	}
	if n := len(plaintext); n < 1 || n > kek.MaxPlaintext {
		return kek.Wrapped{}, p.fail(kek.OpWrap, c.primary, because(kek.Invalid, "a key of %d bytes, want 1 to %d", n, kek.MaxPlaintext))
	}
	ciphertext, err := c.aead.Encrypt(plaintext, p.aad)
	if err != nil {
		return kek.Wrapped{}, p.fail(kek.OpWrap, c.primary, because(kek.Unknown, "Tink: %w", err))
	}
	return kek.Wrapped{Key: kek.KeyRef{ID: p.path, Version: c.primary}, Ciphertext: ciphertext}, nil
}

// Unwrap implements [kek.Provider].
func (p *Provider) Unwrap(ctx context.Context, w kek.Wrapped) ([]byte, error) {
	fail := func(err error) ([]byte, error) { return nil, p.fail(kek.OpUnwrap, w.Key.Version, err) }
	if w.Key.ID != p.path {
		return fail(because(kek.Invalid, "the wrap names the key %q", w.Key.ID))
	}
	c, err := p.load(ctx, false)
	if err != nil {
		return fail(err)
	}
	if err := c.usable(w.Key.Version); err != nil {
		return fail(err)
	}
	if version, ok := versionOf(w.Ciphertext); !ok || version != w.Key.Version {
		return fail(because(kek.Corrupt, "the ciphertext is not from this version"))
	}
	plaintext, err := c.aead.Decrypt(w.Ciphertext, p.aad)
	if err != nil {
		// Tink does not say why, and the AEAD could not: any damage looks alike.
		return fail(because(kek.Corrupt, "the ciphertext does not authenticate: damaged, or of another keyset or cluster"))
	}
	return plaintext, nil
}

// Facts implements [kek.Informer].
func (p *Provider) Facts() kek.Facts {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.facts
}

// Close implements [kek.Provider].
func (p *Provider) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held = nil
	return nil
}

// load returns the keyset, from memory if the file has not changed since and
// nothing fresh is asked for. Reading a local file is not interrupted: ctx is
// asked before.
func (p *Provider) load(ctx context.Context, fresh bool) (*contents, error) {
	if err := ctx.Err(); err != nil {
		return nil, because(kek.Unavailable, "%w", err)
	}
	self := uint32(os.Geteuid())
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.held != nil && !fresh {
		now, err := look(p.path, self)
		if err != nil {
			return nil, err
		}
		if now == p.held.file {
			return p.held, nil
		}
	}
	c, err := read(p.path, self)
	if err != nil {
		return nil, err
	}
	p.held = c
	return c, nil
}

// fail makes err, which carries a Kind, the error of an operation.
func (p *Provider) fail(op kek.Op, version string, err error) error {
	return operationError(op, kek.KeyRef{ID: p.path, Version: version}, err)
}

// versionOf reads the version off a ciphertext. Tink puts 0x01 and the key ID in
// four bytes, big-endian, before each
// (https://developers.google.com/tink/wire-format#tink_output_prefix).
func versionOf(ciphertext []byte) (string, bool) {
	if len(ciphertext) < 5 || ciphertext[0] != 1 {
		return "", false
	}
	return versionName(binary.BigEndian.Uint32(ciphertext[1:])), true
}

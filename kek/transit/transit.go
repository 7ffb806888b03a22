// Package transit wraps keys with a symmetric key of the Transit engine of
// HashiCorp Vault or OpenBao.
//
// What is bound: the [kek.Binding] is the associated_data of every wrap, which
// needs Vault 1.13 or any OpenBao, and a key of type aes256-gcm96, aes128-gcm96,
// chacha20-poly1305 or xchacha20-poly1305. Other types cannot bind or not wrap,
// and are refused; so are derived keys.
//
// The KeyRef.ID is [NAMESPACE/]MOUNT/KEY and holds no address, since a cluster
// may move behind another one. Two clusters in one configuration must therefore
// differ in mount or key.
//
// Policy: read on MOUNT/keys/KEY, update on MOUNT/encrypt/KEY and on
// MOUNT/decrypt/KEY. Do not add create: with it, Vault makes a key that is
// missing. Of auth/token the policy named default grants lookup-self and
// renew-self.
//
// Calls: Current and Unwrap make one, Wrap two. A refusal makes one more, to tell
// a token that may not from one that ended. Package vault says what a login costs.
package transit

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/kube-kek/kube-kek/kek"
	"github.com/kube-kek/kube-kek/kek/transit/vault"
)

// Scheme is the scheme of this home's URIs: hashivault://KEY.
const Scheme = "hashivault"

// Config describes a [Provider].
type Config struct {
	// Key is the key's name, and Mount the path of the Transit engine, "transit"
	// if empty.
	Key, Mount string

	// Binding is the associated_data of every wrap.
	Binding kek.Binding

	// Server says where the key is and how to log in there.
	Server vault.Config
}

// Provider is a [kek.Provider] on one Transit key. It implements [kek.Informer]
// and [kek.Identifier] too.
type Provider struct {
	vault          *vault.Client
	id, mount, key string
	aad            []byte

	mu    sync.Mutex
	facts kek.Facts
}

// maxID is the longest KeyRef.ID in bytes: it is part of every record's key ID.
const maxID = 150

// name is what Vault takes for a key and for an element of a path.
var name = regexp.MustCompile(`^\w([\w.-]*\w)?$`)

// New returns a provider for the key. It reads files and the environment, and
// asks nothing of the network: whether the key exists and may be used, and
// whether a login succeeds, Current tells.
func New(_ context.Context, c Config) (*Provider, error) {
	client, err := vault.New(c.Server)
	if err != nil {
		return nil, fmt.Errorf("Vault Transit: %w", err)
	}
	mount := strings.Trim(c.Mount, "/")
	if mount == "" {
		mount = "transit"
	}
	id := strings.TrimPrefix(client.Namespace()+"/"+mount+"/"+c.Key, "/")
	parts := strings.Split(id, "/")
	if !name.MatchString(c.Key) || slices.ContainsFunc(parts, func(s string) bool { return !name.MatchString(s) }) {
		return nil, fmt.Errorf("Vault Transit: %w: key %q of mount %q, namespace %q: want names of letters, digits and inner _.-", kek.Invalid, c.Key, mount, client.Namespace())
	}
	if len(id) > maxID {
		return nil, fmt.Errorf("Vault Transit: %w: %s is %d bytes long, want at most %d, as it becomes part of the key ID", kek.Invalid, id, len(id), maxID)
	}
	return &Provider{vault: client, id: id, mount: mount, key: c.Key, aad: c.Binding.Bytes()}, nil
}

// keyInfo is what keys/KEY answers
// (https://developer.hashicorp.com/vault/api-docs/secret/transit#read-key).
type keyInfo struct {
	Type          string         `json:"type"`
	Latest        int            `json:"latest_version"`
	MinDecryption int            `json:"min_decryption_version"`
	Derived       bool           `json:"derived"`
	SoftDeleted   bool           `json:"soft_deleted"` // OpenBao's
	Deletable     bool           `json:"deletion_allowed"`
	Exportable    bool           `json:"exportable"`
	PlainBackup   bool           `json:"allow_plaintext_backup"`
	RotatePeriod  float64        `json:"auto_rotate_period"` // seconds, 0 is off
	Keys          map[string]any `json:"keys"`               // of symmetric keys: version to Unix time, from MinDecryption on
}

// Current reads the key.
func (p *Provider) Current(ctx context.Context) (kek.KeyRef, error) {
	k, err := p.read(ctx, kek.OpCurrent)
	if err == nil || k.SoftDeleted {
		f := p.factsOf(k)
		p.mu.Lock()
		p.facts = f
		p.mu.Unlock()
	}
	if err != nil {
		return kek.KeyRef{}, err
	}
	return kek.KeyRef{ID: p.id, Version: strconv.Itoa(k.Latest)}, nil
}

// read reads the key and refuses one that cannot wrap.
func (p *Provider) read(ctx context.Context, op kek.Op) (keyInfo, error) {
	var k keyInfo
	err := p.vault.Read(ctx, op, p.mount+"/keys/"+p.key, &k)
	switch {
	case err != nil:
	case k.Type == "" || k.Latest < 1:
		err = vault.Because(kek.Invalid, "what is mounted at %s is not the Transit engine: correct the mount", p.mount)
	case !slices.Contains([]string{"aes256-gcm96", "aes128-gcm96", "chacha20-poly1305", "xchacha20-poly1305"}, k.Type):
		err = vault.Because(kek.Invalid, "a key of type %s cannot bind what it wraps to the cluster: make one of type aes256-gcm96", k.Type)
	case k.Derived:
		err = vault.Because(kek.Invalid, "a derived key wants a context for every wrap: make one that is not derived")
	case k.SoftDeleted:
		err = vault.Because(kek.KeyDisabled, "the key is soft-deleted: restore it")
	}
	return k, p.fail(op, "", err)
}

func (p *Provider) factsOf(k keyInfo) kek.Facts {
	version := strconv.Itoa(k.Latest)
	f := kek.Facts{
		Key: kek.KeyRef{ID: p.id, Version: version}, State: kek.StateEnabled, Rotation: "off",
		Created: created(k.Keys["1"]), VersionCreated: created(k.Keys[version]),
	}
	if k.SoftDeleted {
		f.State = kek.StateDisabled
	}
	if k.RotatePeriod > 0 {
		f.Rotation = fmt.Sprintf("every %v", time.Duration(k.RotatePeriod)*time.Second)
	}
	if k.Deletable {
		f.Notes = append(f.Notes, "deletion_allowed is true: one call destroys the key, and with it every record. Set it to false.")
	}
	if k.Exportable || k.PlainBackup {
		f.Notes = append(f.Notes, "The key may be exported or backed up in clear, for ever: whoever has a copy needs Vault no more.")
	}
	if k.MinDecryption > 1 {
		f.Notes = append(f.Notes, fmt.Sprintf("min_decryption_version is %d: what older versions wrapped cannot be read.", k.MinDecryption))
	}
	if note := p.vault.Note(); note != "" {
		f.Notes = append(f.Notes, note)
	}
	return f
}

func created(unix any) time.Time {
	if s, ok := unix.(float64); ok && s > 0 {
		return time.Unix(int64(s), 0)
	}
	return time.Time{}
}

// payload is the body of encrypt and decrypt and the data of their answers. Its
// bytes travel in base64.
type payload struct {
	Plaintext      []byte `json:"plaintext,omitempty"`
	Ciphertext     string `json:"ciphertext,omitempty"`
	AssociatedData []byte `json:"associated_data,omitempty"`
	KeyVersion     int    `json:"key_version,omitempty"`
}

// prefix begins each ciphertext of Transit, before its base64. Neither is stored:
// the record's KeyRef tells the version, and the bytes are a third shorter.
func prefix(version int) string { return fmt.Sprintf("vault:v%d:", version) }

// Wrap reads the key and encrypts under its latest version.
func (p *Provider) Wrap(ctx context.Context, plaintext []byte) (kek.Wrapped, error) {
	fail := func(err error) (kek.Wrapped, error) { return kek.Wrapped{}, p.fail(kek.OpWrap, "", err) }
	if n := len(plaintext); n == 0 || n > kek.MaxPlaintext {
		return fail(vault.Because(kek.Invalid, "a key of %d bytes: 1 to %d are wrapped", n, kek.MaxPlaintext))
	}
	k, err := p.read(ctx, kek.OpWrap)
	if err != nil {
		return kek.Wrapped{}, err
	}
	var out payload
	in := payload{Plaintext: plaintext, AssociatedData: p.aad, KeyVersion: k.Latest}
	if err := p.vault.Update(ctx, kek.OpWrap, p.mount+"/encrypt/"+p.key, in, &out); err != nil {
		return fail(err)
	}
	text, ok := strings.CutPrefix(out.Ciphertext, prefix(k.Latest))
	ciphertext, err := base64.StdEncoding.DecodeString(text)
	if !ok || err != nil || len(ciphertext) <= len(plaintext) || base64.StdEncoding.EncodeToString(ciphertext) != text {
		return fail(vault.Because(kek.Unavailable, "the answer is not a ciphertext of version %d", k.Latest))
	}
	return kek.Wrapped{Key: kek.KeyRef{ID: p.id, Version: strconv.Itoa(k.Latest)}, Ciphertext: ciphertext}, nil
}

// Unwrap decrypts with the version that w names, current or not.
func (p *Provider) Unwrap(ctx context.Context, w kek.Wrapped) ([]byte, error) {
	fail := func(err error) ([]byte, error) { return nil, p.fail(kek.OpUnwrap, w.Key.Version, err) }
	if w.Key.ID != p.id {
		return fail(vault.Because(kek.Invalid, "wrapped by %q, which is another key", w.Key.ID))
	}
	version, err := strconv.Atoi(w.Key.Version)
	if err != nil || version < 1 || strconv.Itoa(version) != w.Key.Version {
		return fail(vault.Because(kek.Invalid, "%q is not a version of a Transit key", w.Key.Version))
	}
	var out payload
	in := payload{Ciphertext: prefix(version) + base64.StdEncoding.EncodeToString(w.Ciphertext), AssociatedData: p.aad}
	if err := p.vault.Update(ctx, kek.OpUnwrap, p.mount+"/decrypt/"+p.key, in, &out); err != nil {
		return fail(err)
	}
	if len(out.Plaintext) == 0 {
		return fail(vault.Because(kek.Unavailable, "the answer holds no plaintext"))
	}
	return out.Plaintext, nil
}

// Facts returns what the last Current was told.
func (p *Provider) Facts() kek.Facts {
	p.mu.Lock()
	defer p.mu.Unlock()
	f := p.facts
	f.Notes = slices.Clone(f.Notes)
	return f
}

// Identity tells of the token that is in use: its display name, how it was got,
// and its entity.
func (p *Provider) Identity(ctx context.Context) (string, error) {
	who, err := p.vault.Identity(ctx)
	return who, p.fail(kek.OpIdentity, "", err)
}

// Close closes idle connections. The token ends by itself.
func (p *Provider) Close() error {
	p.vault.Close()
	return nil
}

// fail completes the error of an operation, nil if there is none.
func (p *Provider) fail(op kek.Op, version string, err error) error {
	if err == nil {
		return nil
	}
	e := &kek.Error{Err: err}
	errors.As(err, &e)
	return &kek.Error{Op: op, Key: kek.KeyRef{ID: p.id, Version: version}, Kind: e.Kind, Permission: e.Permission, RetryAfter: e.RetryAfter, Err: e.Err}
}

// Package azurekv wraps keys with a key of Azure Key Vault or of a Managed HSM.
//
// Nothing is bound: RSA-OAEP-256, which vaults offer, and A256KW, which Managed
// HSMs offer, take no additional data. Whoever may unwrap with the key can
// unwrap the wraps of every cluster that uses it; give each cluster a key of its
// own. That a record is this cluster's is seen to by the record's own seal.
//
// Versions are those of the key, 32 hex digits. A wrap names the version that
// made it, and every version that is enabled goes on unwrapping, also when it
// has expired; a rotation needs nothing done here.
//
// Permissions: keys/get, keys/wrapKey and keys/unwrapKey in an access policy;
// with RBAC, the role "Key Vault Crypto Service Encryption User" on the key
// (Microsoft.KeyVault/vaults/keys/read, …/keys/wrap/action and
// …/keys/unwrap/action), on a Managed HSM "Managed HSM Crypto Service Encryption
// User". With keys/getrotationpolicy it can also tell the rotation setting.
//
// Calls, as Azure bills and limits them: one for each of Current, Wrap and
// Unwrap. Current makes one more when it sees a new version or no key, and the
// first Wrap one where no Current came before. The first call of a provider is
// sent twice: the vault must name the tenant and resource of the token first.
package azurekv

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azkeys"
	"github.com/kube-kek/kube-kek/kek"
)

// Scheme is the scheme of this home's URIs.
const Scheme = "azurekms"

// Provider is a [kek.Provider] on one key. It implements [kek.Informer] and
// [kek.Identifier] too.
type Provider struct {
	key        key
	keys       *azkeys.Client
	credential *credential
	http       *http.Client
	staticNote string // about the credential, empty if it is short-lived

	mu       sync.Mutex
	current  version // zero until it is known
	rotation rotation
	facts    kek.Facts
}

// version is a key version that may wrap.
type version struct {
	name      string
	algorithm azkeys.EncryptionAlgorithm
}

// Current makes one GetKey, which answers with the newest version.
func (p *Provider) Current(ctx context.Context) (kek.KeyRef, error) {
	v, err := p.latest(ctx, kek.OpCurrent)
	if err != nil {
		return kek.KeyRef{}, err
	}
	return kek.KeyRef{ID: p.key.id, Version: v.name}, nil
}

// latest asks for the newest version and keeps it for Wrap. For Current it also
// keeps what else was told.
func (p *Provider) latest(ctx context.Context, op kek.Op) (version, error) {
	facts := kek.Facts{Key: kek.KeyRef{ID: p.key.id}}
	var v version
	got, err := await(ctx, func() (azkeys.GetKeyResponse, error) { return p.keys.GetKey(ctx, p.key.name, "", nil) })
	if err != nil {
		err = p.fail(op, p.key.permission("keys/get", "read"), err)
	} else {
		v, err = p.read(op, got.KeyBundle, &facts)
	}
	if op == kek.OpCurrent {
		err = p.inform(ctx, v, facts, err)
	}
	if err == nil || kek.KindOf(err).Word() {
		p.keep(v)
	}
	return v, err
}

// keep sets the version that Wrap uses; the zero version is none.
func (p *Provider) keep(v version) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.current = v
}

// inform completes the facts and keeps them, unless err says that nothing was told.
func (p *Provider) inform(ctx context.Context, v version, facts kek.Facts, err error) error {
	if kek.KindOf(err) == kek.KeyNotFound {
		err = p.deleted(ctx, &facts, err)
	}
	switch {
	case err == nil:
		r := p.rotationOf(ctx, v.name)
		facts.State, facts.Rotation = kek.StateEnabled, r.setting
		facts.Notes = append(facts.Notes, r.notes...)
	case kek.KindOf(err) == kek.KeyDisabled && facts.State == kek.StateUnknown:
		facts.State = kek.StateDisabled
	case !kek.KindOf(err).Word():
		return err
	}
	if p.staticNote != "" {
		facts.Notes = append(facts.Notes, p.staticNote)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.facts = facts
	return err
}

// read takes a key apart, and refuses one that cannot wrap now.
func (p *Provider) read(op kek.Op, b azkeys.KeyBundle, facts *kek.Facts) (version, error) {
	name := p.versionOf(b.Key)
	if name == "" {
		return version{}, p.garbled(op, "GetKey")
	}
	facts.Key.Version = name
	a := azkeys.KeyAttributes{}
	if b.Attributes != nil {
		a = *b.Attributes
	}
	if a.Created != nil {
		facts.VersionCreated = *a.Created
	}
	if a.RecoveryLevel != nil && strings.Contains(*a.RecoveryLevel, "Purgeable") {
		facts.Notes = append(facts.Notes, "Purge protection is off: whoever may purge keys can destroy this one, and with it every record, at once.")
	}
	now := time.Now()
	algorithm, unfit := algorithmOf(b.Key)
	switch {
	case unfit != nil:
		return version{}, p.refuse(op, kek.Invalid, unfit)
	case a.Enabled != nil && !*a.Enabled:
		return version{}, p.refuse(op, kek.KeyDisabled, fmt.Errorf("version %s, the newest, is disabled: enable it", name))
	case a.NotBefore != nil && a.NotBefore.After(now):
		return version{}, p.refuse(op, kek.KeyDisabled, fmt.Errorf("version %s, the newest, is not valid before %s (nbf)", name, stamp(*a.NotBefore)))
	case a.Expires != nil && !a.Expires.After(now):
		return version{}, p.refuse(op, kek.KeyDisabled, fmt.Errorf("version %s, the newest, expired at %s (exp): create a new version; this one goes on unwrapping", name, stamp(*a.Expires)))
	case a.Expires != nil:
		facts.Notes = append(facts.Notes, fmt.Sprintf("The current version expires at %s and wraps nothing from then on: have a new version before.", stamp(*a.Expires)))
	}
	return version{name, algorithm}, nil
}

// algorithmOf returns how a key wraps, or why it cannot.
func algorithmOf(k *azkeys.JSONWebKey) (azkeys.EncryptionAlgorithm, error) {
	kind := azkeys.KeyType("")
	if k.Kty != nil {
		kind = *k.Kty
	}
	for _, needed := range []azkeys.KeyOperation{azkeys.KeyOperationWrapKey, azkeys.KeyOperationUnwrapKey} {
		if !slices.ContainsFunc(k.KeyOps, func(op *azkeys.KeyOperation) bool { return op != nil && *op == needed }) {
			return "", fmt.Errorf("the key does not permit the operation %s: its key_ops must hold wrapKey and unwrapKey", needed)
		}
	}
	switch kind {
	case azkeys.KeyTypeRSA, azkeys.KeyTypeRSAHSM:
		if bits := 8 * len(k.N); bits < 2048 {
			return "", fmt.Errorf("an RSA key of %d bits: a KEK needs 2048 or more", bits)
		}
		return azkeys.EncryptionAlgorithmRSAOAEP256, nil
	case azkeys.KeyTypeOctHSM:
		return azkeys.EncryptionAlgorithmA256KW, nil
	}
	return "", fmt.Errorf("a key of type %q: a KEK must be RSA, RSA-HSM or oct-HSM", kind)
}

// deleted asks whether a key that is not found can still be recovered.
func (p *Provider) deleted(ctx context.Context, facts *kek.Facts, notFound error) error {
	got, err := await(ctx, func() (azkeys.GetDeletedKeyResponse, error) { return p.keys.GetDeletedKey(ctx, p.key.name, nil) })
	if err != nil || got.ScheduledPurgeDate == nil {
		return notFound
	}
	facts.State, facts.DeletionDate = kek.StatePendingDeletion, *got.ScheduledPurgeDate
	return p.refuse(kek.OpCurrent, kek.KeyDisabled, fmt.Errorf("the key was deleted and is purged at %s: recover it", stamp(facts.DeletionDate)))
}

// Wrap makes one WrapKey, pinned to the version that the last Current named.
func (p *Provider) Wrap(ctx context.Context, plaintext []byte) (kek.Wrapped, error) {
	if n := len(plaintext); n == 0 || n > kek.MaxPlaintext {
		return kek.Wrapped{}, p.refuse(kek.OpWrap, kek.Invalid, fmt.Errorf("a key of %d bytes: 1 to %d are wrapped", n, kek.MaxPlaintext))
	}
	p.mu.Lock()
	v := p.current
	p.mu.Unlock()
	if v.name == "" {
		var err error
		if v, err = p.latest(ctx, kek.OpWrap); err != nil {
			return kek.Wrapped{}, err
		}
	}
	value := slices.Clone(plaintext)
	if v.algorithm == azkeys.EncryptionAlgorithmA256KW {
		value = frame(plaintext)
	}
	got, err := await(ctx, func() (azkeys.WrapKeyResponse, error) {
		defer clear(value)
		return p.keys.WrapKey(ctx, p.key.name, v.name, azkeys.KeyOperationParameters{Algorithm: &v.algorithm, Value: value}, nil)
	})
	if err != nil {
		err = p.fail(kek.OpWrap, p.key.permission("keys/wrapKey", "wrap"), err)
		if kek.KindOf(err).Word() {
			p.keep(version{}) // the word may be on this version alone: there may be a newer one
		}
		return kek.Wrapped{}, err
	}
	used := p.versionOf(&azkeys.JSONWebKey{KID: got.KID})
	if used == "" || len(got.Result) == 0 || len(got.Result) > maxCiphertext {
		return kek.Wrapped{}, p.garbled(kek.OpWrap, "WrapKey")
	}
	return kek.Wrapped{Key: kek.KeyRef{ID: p.key.id, Version: used}, Ciphertext: got.Result}, nil
}

const (
	maxCiphertext = 512 // of an RSA key of 4096 bits, the largest that there are
	minRSA        = 256 // of one of 2048 bits; a frame under A256KW is far shorter
	padding       = 16  // bytes at least, random
)

// frame makes what A256KW can wrap of a key: a multiple of 8 bytes (RFC 3394),
// the key's length first and random bytes last, without which two wraps of one
// key would be equal. A256KW authenticates all of it.
func frame(key []byte) []byte {
	f := make([]byte, frameSize(len(key)))
	f[0] = byte(len(key))
	_, _ = rand.Read(f[1+copy(f[1:], key):]) // never fails
	return f
}

func frameSize(key int) int { return (1 + key + padding + 7) / 8 * 8 }

// unframe returns the key in f, nil if f is no frame.
func unframe(f []byte) []byte {
	if len(f) == 0 || f[0] == 0 || len(f) != frameSize(int(f[0])) {
		return nil
	}
	return slices.Clone(f[1 : 1+int(f[0])])
}

// Unwrap makes one UnwrapKey with the version that w names.
func (p *Provider) Unwrap(ctx context.Context, w kek.Wrapped) ([]byte, error) {
	switch {
	case w.Key.ID != p.key.id:
		return nil, p.refuse(kek.OpUnwrap, kek.Invalid, fmt.Errorf("wrapped by %q, which is another key", w.Key.ID))
	case !versionPattern.MatchString(w.Key.Version):
		return nil, p.refuse(kek.OpUnwrap, kek.Invalid, fmt.Errorf("wrapped by version %q: a version is 32 hex digits", w.Key.Version))
	}
	algorithm := azkeys.EncryptionAlgorithmRSAOAEP256
	if len(w.Ciphertext) < minRSA {
		algorithm = azkeys.EncryptionAlgorithmA256KW
	}
	value := slices.Clone(w.Ciphertext)
	got, err := await(ctx, func() (azkeys.UnwrapKeyResponse, error) {
		return p.keys.UnwrapKey(ctx, p.key.name, w.Key.Version, azkeys.KeyOperationParameters{Algorithm: &algorithm, Value: value}, nil)
	})
	if err != nil {
		return nil, p.fail(kek.OpUnwrap, p.key.permission("keys/unwrapKey", "unwrap"), err)
	}
	if len(got.Result) == 0 || p.versionOf(&azkeys.JSONWebKey{KID: got.KID}) != w.Key.Version {
		return nil, p.garbled(kek.OpUnwrap, "UnwrapKey")
	}
	if algorithm == azkeys.EncryptionAlgorithmRSAOAEP256 {
		return got.Result, nil
	}
	defer clear(got.Result)
	if key := unframe(got.Result); key != nil {
		return key, nil
	}
	return nil, p.refuse(kek.OpUnwrap, kek.Corrupt, errors.New("unwrapped, and not what this plugin wraps"))
}

var versionPattern = regexp.MustCompile(`^[0-9a-f]{32}$`)

// versionOf returns the version that a key's identifier names, empty if it is
// one of another key or of none.
func (p *Provider) versionOf(k *azkeys.JSONWebKey) string {
	if k == nil || k.KID == nil {
		return ""
	}
	u, err := url.Parse(string(*k.KID))
	if err != nil || !strings.EqualFold(u.Host, p.key.host) {
		return ""
	}
	path := strings.Split(u.Path, "/") // "", "keys", name, version
	if len(path) != 4 || path[1] != "keys" || !strings.EqualFold(path[2], p.key.name) || !versionPattern.MatchString(path[3]) {
		return ""
	}
	return path[3]
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// Facts returns what the last Current was told.
func (p *Provider) Facts() kek.Facts {
	p.mu.Lock()
	defer p.mu.Unlock()
	f := p.facts
	f.Notes = slices.Clone(f.Notes)
	return f
}

// Identity returns whom a new access token is for, as Key Vault's own log names
// callers. It needs no permission.
func (p *Provider) Identity(ctx context.Context) (string, error) {
	who, err := await(ctx, func() (string, error) { return p.credential.identity(ctx) })
	if err != nil {
		return "", p.fail(kek.OpIdentity, "", err)
	}
	return who, nil
}

// Close closes idle connections.
func (p *Provider) Close() error {
	p.http.CloseIdleConnections()
	return nil
}

// await returns when ctx ends, which the SDK does not do while another caller is
// fetching the token that both need. It also survives the SDK's panic on a
// challenge that names no tenant.
func await[T any](ctx context.Context, call func() (T, error)) (T, error) {
	type result struct {
		got T
		err error
	}
	done := make(chan result, 1)
	go func() {
		var r result
		defer func() {
			if recover() != nil {
				r.err = errors.New("an answer that the Azure SDK cannot read")
			}
			done <- r
		}()
		r.got, r.err = call()
	}()
	select {
	case r := <-done:
		return r.got, r.err
	case <-ctx.Done():
		var none T
		return none, ctx.Err()
	}
}

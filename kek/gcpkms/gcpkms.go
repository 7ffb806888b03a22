// Package gcpkms wraps keys with a symmetric key of Google Cloud KMS.
//
// What is bound: the [kek.Binding] is the additional authenticated data of every
// Encrypt and Decrypt, in the form of [kek.Binding.Bytes]. KMS neither logs it
// nor lets IAM demand it; a record of another cluster does not decrypt.
//
// Versions are the numbers of CryptoKeyVersions. KMS moves a key's primary
// version with a delay that differs from server to server, so Wrap names the
// version that Current saw and never leaves the choice to the key. Plaintexts,
// ciphertexts and additional data carry CRC32C checksums both ways.
//
// IAM, on the key: cloudkms.cryptoKeys.get (roles/cloudkms.viewer),
// cloudkms.cryptoKeyVersions.useToEncrypt and …useToDecrypt
// (roles/cloudkms.cryptoKeyEncrypterDecrypter).
//
// Calls, as Google bills and limits them: Current makes one, a read, of which a
// project has few by the minute; Wrap and Unwrap make one cryptographic
// operation each. The first Wrap makes a read too if no Current came before it,
// and so does a Wrap that finds its version disabled since. Cloud KMS gives its
// answers no request ID.
//
// Credentials are Google's Application Default Credentials without gcloud's
// login of a person: the file that GOOGLE_APPLICATION_CREDENTIALS names, else
// the metadata server. The file is read again for each new token.
package gcpkms

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"strings"
	"sync"
	"time"

	kms "cloud.google.com/go/kms/apiv1"
	"cloud.google.com/go/kms/apiv1/kmspb"
	"github.com/kube-kek/kube-kek/kek"
	"google.golang.org/protobuf/types/known/timestamppb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// Scheme is the scheme of this home's URIs.
const Scheme = "gcpkms"

// Provider is a [kek.Provider] on one CryptoKey. It implements [kek.Informer]
// and [kek.Identifier] too.
type Provider struct {
	name   string // projects/P/locations/L/keyRings/R/cryptoKeys/K
	aad    []byte
	kms    *kms.KeyManagementClient
	tokens *tokens

	mu      sync.Mutex
	version string // the primary that the last answer named, empty if it was unusable
	facts   kek.Facts
}

// Current makes one GetCryptoKey.
func (p *Provider) Current(ctx context.Context) (kek.KeyRef, error) {
	return p.ask(ctx, kek.OpCurrent)
}

func (p *Provider) ask(ctx context.Context, op kek.Op) (kek.KeyRef, error) {
	key, err := p.kms.GetCryptoKey(ctx, &kmspb.GetCryptoKeyRequest{Name: p.name})
	if err != nil {
		return kek.KeyRef{}, p.fail(op, "cloudkms.cryptoKeys.get", err)
	}
	version, ok := p.versionOf(key.GetPrimary().GetName())
	if key.Primary != nil && !ok || !p.isMine(key.Name) {
		return kek.KeyRef{}, p.refuse(op, kek.Unavailable, errors.New("the endpoint's answer to GetCryptoKey is not one of KMS on this key"))
	}
	ref := kek.KeyRef{ID: p.name, Version: version}
	facts := factsOf(key, ref)
	if note := p.tokens.note; note != "" {
		facts.Notes = append(facts.Notes, note)
	}
	kind, unusable := usable(key, version)
	if unusable != nil {
		version = ""
	}
	p.mu.Lock()
	p.version, p.facts = version, facts
	p.mu.Unlock()
	if unusable != nil {
		return kek.KeyRef{}, p.refuse(op, kind, unusable)
	}
	return ref, nil
}

// Wrap makes one Encrypt with the version that Current saw last.
func (p *Provider) Wrap(ctx context.Context, plaintext []byte) (kek.Wrapped, error) {
	if n := len(plaintext); n == 0 || n > kek.MaxPlaintext {
		return kek.Wrapped{}, p.refuse(kek.OpWrap, kek.Invalid, fmt.Errorf("a key of %d bytes: 1 to %d are wrapped", n, kek.MaxPlaintext))
	}
	p.mu.Lock()
	version := p.version
	p.mu.Unlock()
	if version != "" {
		w, err := p.encrypt(ctx, version, plaintext)
		if !errors.Is(err, kek.KeyDisabled) && !errors.Is(err, kek.KeyNotFound) {
			return w, err
		}
		// That version may have ended while another became the primary one.
	}
	ref, err := p.ask(ctx, kek.OpWrap)
	if err != nil {
		return kek.Wrapped{}, err
	}
	return p.encrypt(ctx, ref.Version, plaintext)
}

func (p *Provider) encrypt(ctx context.Context, version string, plaintext []byte) (kek.Wrapped, error) {
	out, err := p.kms.Encrypt(ctx, &kmspb.EncryptRequest{
		Name:      p.name + versions + version,
		Plaintext: plaintext, PlaintextCrc32C: checksum(plaintext),
		AdditionalAuthenticatedData: p.aad, AdditionalAuthenticatedDataCrc32C: checksum(p.aad),
	})
	if err != nil {
		return kek.Wrapped{}, p.fail(kek.OpWrap, "cloudkms.cryptoKeyVersions.useToEncrypt", err)
	}
	used, ok := p.versionOf(out.Name)
	switch {
	case !ok || len(out.Ciphertext) == 0:
		return kek.Wrapped{}, p.refuse(kek.OpWrap, kek.Unavailable, errors.New("the endpoint's answer to Encrypt is not one of KMS on this key"))
	case !out.VerifiedPlaintextCrc32C || !out.VerifiedAdditionalAuthenticatedDataCrc32C:
		return kek.Wrapped{}, p.refuse(kek.OpWrap, kek.Unavailable, errors.New("KMS did not get the checksums of the request: it was damaged on its way"))
	case !intact(out.Ciphertext, out.CiphertextCrc32C):
		return kek.Wrapped{}, p.refuse(kek.OpWrap, kek.Unavailable, errors.New("the ciphertext does not match its checksum: the answer was damaged on its way"))
	}
	return kek.Wrapped{Key: kek.KeyRef{ID: p.name, Version: used}, Ciphertext: out.Ciphertext}, nil
}

// Unwrap makes one Decrypt, pinned to the key. w.Key.Version is not needed: the
// ciphertext names its version itself.
func (p *Provider) Unwrap(ctx context.Context, w kek.Wrapped) ([]byte, error) {
	if w.Key.ID != p.name {
		return nil, p.refuse(kek.OpUnwrap, kek.Invalid, fmt.Errorf("wrapped by %q, which is another key", w.Key.ID))
	}
	out, err := p.kms.Decrypt(ctx, &kmspb.DecryptRequest{
		Name:       p.name,
		Ciphertext: w.Ciphertext, CiphertextCrc32C: checksum(w.Ciphertext),
		AdditionalAuthenticatedData: p.aad, AdditionalAuthenticatedDataCrc32C: checksum(p.aad),
	})
	switch {
	case err != nil:
		return nil, p.fail(kek.OpUnwrap, "cloudkms.cryptoKeyVersions.useToDecrypt", err)
	case len(out.Plaintext) == 0 || !intact(out.Plaintext, out.PlaintextCrc32C):
		clear(out.Plaintext)
		return nil, p.refuse(kek.OpUnwrap, kek.Unavailable, errors.New("the plaintext does not match its checksum: the answer was damaged on its way"))
	}
	return out.Plaintext, nil
}

const versions = "/cryptoKeyVersions/"

// isMine compares without the project, which has a number as well as an ID.
func (p *Provider) isMine(name string) bool {
	_, want, _ := strings.Cut(p.name, "/locations/")
	_, got, _ := strings.Cut(name, "/locations/")
	return got == want
}

// versionOf returns the number at the end of the name of a version of this key.
func (p *Provider) versionOf(name string) (string, bool) {
	key, number, _ := strings.Cut(name, versions)
	return number, p.isMine(key) && number != "" && len(number) <= maxVersion && strings.Trim(number, "0123456789") == ""
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(b []byte) *wrapperspb.Int64Value {
	return wrapperspb.Int64(int64(crc32.Checksum(b, castagnoli)))
}

func intact(b []byte, sum *wrapperspb.Int64Value) bool {
	return sum != nil && sum.Value == checksum(b).Value
}

// usable says why a key cannot wrap, and what that means.
func usable(key *kmspb.CryptoKey, version string) (kek.Kind, error) {
	if key.Purpose != kmspb.CryptoKey_ENCRYPT_DECRYPT {
		return kek.Invalid, fmt.Errorf("its purpose is %s: a KEK must have the purpose ENCRYPT_DECRYPT, so make another key", key.Purpose)
	}
	if key.Primary == nil {
		return kek.KeyDisabled, errors.New("it has no primary version: make one (gcloud kms keys versions create --primary)")
	}
	switch state := key.Primary.State; state {
	case kmspb.CryptoKeyVersion_ENABLED:
		return kek.Unknown, nil
	case kmspb.CryptoKeyVersion_PENDING_GENERATION, kmspb.CryptoKeyVersion_PENDING_IMPORT:
		return kek.Unavailable, fmt.Errorf("its primary version %s is not ready: %s", version, state)
	case kmspb.CryptoKeyVersion_DESTROY_SCHEDULED:
		return kek.KeyDisabled, fmt.Errorf("its primary version %s is %s, gone after %s: restore and enable it, or make another one primary",
			version, state, timeOf(key.Primary.DestroyTime).Format(time.RFC3339))
	case kmspb.CryptoKeyVersion_DISABLED:
		return kek.KeyDisabled, fmt.Errorf("its primary version %s is %s: enable it, or make another one primary", version, state)
	default:
		return kek.KeyDisabled, fmt.Errorf("its primary version %s is %s: make another one primary", version, state)
	}
}

func factsOf(key *kmspb.CryptoKey, ref kek.KeyRef) kek.Facts {
	f := kek.Facts{Key: ref, Created: timeOf(key.CreateTime), Rotation: "off"}
	if days := key.GetRotationPeriod().AsDuration().Hours() / 24; days > 0 {
		f.Rotation = fmt.Sprintf("every %.4g days", days)
		if key.NextRotationTime != nil {
			f.Rotation += ", next at " + key.NextRotationTime.AsTime().Format(time.RFC3339)
		}
	}
	primary := key.Primary
	if primary == nil {
		return f
	}
	f.VersionCreated = timeOf(primary.CreateTime)
	switch primary.State {
	case kmspb.CryptoKeyVersion_ENABLED:
		f.State = kek.StateEnabled
	case kmspb.CryptoKeyVersion_DISABLED:
		f.State = kek.StateDisabled
	case kmspb.CryptoKeyVersion_DESTROY_SCHEDULED:
		f.State, f.DeletionDate = kek.StatePendingDeletion, timeOf(primary.DestroyTime)
	case kmspb.CryptoKeyVersion_DESTROYED:
		f.State, f.DeletionDate = kek.StatePendingDeletion, timeOf(primary.DestroyEventTime)
	}
	if level := primary.ProtectionLevel; level != kmspb.ProtectionLevel_SOFTWARE {
		f.Notes = append(f.Notes, fmt.Sprintf("The protection level of the key is %s.", level))
	}
	return f
}

// timeOf is zero for a time that was not told, where AsTime is 1970.
func timeOf(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}

// Facts returns what the last Current was told.
func (p *Provider) Facts() kek.Facts {
	p.mu.Lock()
	defer p.mu.Unlock()
	f := p.facts
	f.Notes = slices.Clone(f.Notes)
	return f
}

// Identity gets a token and returns whose it is, as far as the credentials say:
// a service account's email, or a workload identity's pool and provider.
func (p *Provider) Identity(ctx context.Context) (string, error) {
	if _, err := p.tokens.get(ctx); err != nil {
		return "", p.fail(kek.OpIdentity, "", err)
	}
	who, err := p.tokens.principal(ctx)
	if err != nil {
		return "", p.fail(kek.OpIdentity, "", err)
	}
	return who, nil
}

// Close closes the connections.
func (p *Provider) Close() error {
	_ = p.kms.Close() // its only error is that it was closed before
	p.tokens.close()
	return nil
}

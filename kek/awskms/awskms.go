// Package awskms wraps keys with a symmetric key of AWS KMS.
//
// What is bound: the [kek.Binding] is the encryption context of every Encrypt
// and Decrypt. CloudTrail logs it in clear, a key policy can demand it
// (kms:EncryptionContext:kube-kek.io/cluster), and a record of another cluster
// is an InvalidCiphertextException.
//
// Versions are key material IDs. AWS names the current one in DescribeKey and
// the one that was used in Decrypt, but not in Encrypt: Wrap therefore decrypts
// what it encrypted, and compares. An endpoint that tells no material IDs works
// too, but its rotations cannot be seen: the version is always "unversioned".
//
// IAM: the key's user needs kms:DescribeKey, kms:Encrypt and kms:Decrypt on the
// key. With kms:ListKeyRotations and kms:GetKeyRotationStatus it can also tell
// the age of the current version and the rotation setting. A role to assume
// needs sts:AssumeRole.
//
// Calls, as AWS bills and limits them: Current makes one (three when it sees a
// new version, two while an alias points elsewhere), Wrap two, Unwrap one. The
// first call of a provider that was not given a key ARN makes one more.
//
// Credentials come from the SDK's own chain: environment, shared files, web
// identity, container and instance roles, each renewed by the SDK a minute
// before it ends.
package awskms

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/kube-kek/kube-kek/kek"
)

// Scheme is the scheme of this home's URIs.
const Scheme = "awskms"

// unversioned is the version where the endpoint names none.
const unversioned = "unversioned"

// Provider is a [kek.Provider] on one KMS key. It implements [kek.Informer] and
// [kek.Identifier] too.
type Provider struct {
	name       string // the key as it was configured: ARN, ID, alias
	binding    kek.Binding
	kms        *kms.Client
	sts        *sts.Client
	http       *http.Client
	staticNote string // about the credentials, empty if they are short-lived

	mu       sync.Mutex
	arn      string // the one key that is ever asked; empty until it is known
	facts    kek.Facts
	rotation rotation
}

// Current makes one DescribeKey. An alias is resolved by the first Current that
// succeeds, or by an earlier Wrap or Unwrap; from then on the provider keeps to
// that key, and Facts tells when the alias has come to point to another.
func (p *Provider) Current(ctx context.Context) (kek.KeyRef, error) {
	md, notes, err := p.describeWatched(ctx)
	if err != nil {
		return kek.KeyRef{}, err
	}
	ref := kek.KeyRef{ID: aws.ToString(md.Arn), Version: versionOf(md.CurrentKeyMaterialId)}
	facts := kek.Facts{
		Key:          ref,
		State:        stateOf(md.KeyState),
		Created:      aws.ToTime(md.CreationDate),
		DeletionDate: aws.ToTime(md.DeletionDate),
	}
	if ref.Version == unversioned {
		notes = append(notes, "The endpoint names no key material (KeyMetadata.CurrentKeyMaterialId is missing): rotations of this key cannot be seen, and the key ID does not change with them.")
	}
	if md.ValidTo != nil {
		notes = append(notes, fmt.Sprintf("The key material was imported and ends at %s: without it no record can be read. Import it again before.", md.ValidTo.UTC().Format(time.RFC3339)))
	}
	if p.staticNote != "" {
		notes = append(notes, p.staticNote)
	}

	kind, unusable := usable(md)
	if unusable == nil {
		r := p.rotationOf(ctx, ref, facts.Created)
		facts.VersionCreated, facts.Rotation = r.versionCreated, r.setting
		notes = append(notes, r.notes...)
	}
	facts.Notes = notes
	p.mu.Lock()
	p.facts = facts
	p.mu.Unlock()
	if unusable != nil {
		return kek.KeyRef{}, &kek.Error{Op: kek.OpCurrent, Key: kek.KeyRef{ID: ref.ID}, Kind: kind, Err: unusable}
	}
	p.keepTo(ref.ID)
	return ref, nil
}

// describeWatched describes the key under its configured name. Where that is an
// alias which no longer leads to the key, it describes the key itself.
func (p *Provider) describeWatched(ctx context.Context) (md *types.KeyMetadata, notes []string, err error) {
	md, err = p.describe(ctx, kek.OpCurrent, p.name)
	arn := p.known()
	if !strings.Contains(p.name, "alias/") || arn == "" {
		return md, nil, err
	}
	switch {
	case err == nil && *md.Arn == arn:
		return md, nil, nil
	case err == nil:
		notes = append(notes, fmt.Sprintf("%s now points to %s. This process goes on with %s: to move, name the new key in kek: and the old one in previous:.", p.name, *md.Arn, arn))
	case kek.KindOf(err).Word():
		// The word on another key, or on the alias itself, is not the word on ours.
		notes = append(notes, fmt.Sprintf("%s no longer leads to %s (%v). This process goes on with that key: name its ARN in the configuration.", p.name, arn, kek.KindOf(err)))
	default:
		return nil, nil, err
	}
	md, err = p.describe(ctx, kek.OpCurrent, arn)
	return md, notes, err
}

func (p *Provider) describe(ctx context.Context, op kek.Op, name string) (*types.KeyMetadata, error) {
	out, err := p.kms.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: &name})
	if err != nil {
		return nil, p.fail(op, "kms:DescribeKey", err)
	}
	if out.KeyMetadata == nil || out.KeyMetadata.Arn == nil {
		return nil, p.garbled(op, "DescribeKey")
	}
	return out.KeyMetadata, nil
}

// usable says why a key cannot wrap, and what that means.
func usable(md *types.KeyMetadata) (kek.Kind, error) {
	switch {
	case md.KeyUsage != types.KeyUsageTypeEncryptDecrypt || md.KeySpec != types.KeySpecSymmetricDefault:
		return kek.Invalid, fmt.Errorf("key spec %s with usage %s: a KEK must be %s with usage %s",
			md.KeySpec, md.KeyUsage, types.KeySpecSymmetricDefault, types.KeyUsageTypeEncryptDecrypt)
	case md.KeyState == types.KeyStateEnabled || md.KeyState == types.KeyStateUpdating:
		return kek.Unknown, nil
	case md.KeyState == types.KeyStateUnavailable || md.KeyState == types.KeyStateCreating:
		return kek.Unavailable, fmt.Errorf("key state %s", md.KeyState)
	case md.DeletionDate != nil:
		return kek.KeyDisabled, fmt.Errorf("key state %s, gone after %s: cancel the deletion and enable the key",
			md.KeyState, md.DeletionDate.UTC().Format(time.RFC3339))
	}
	return kek.KeyDisabled, fmt.Errorf("key state %s", md.KeyState)
}

func stateOf(s types.KeyState) kek.State {
	switch s {
	case types.KeyStateEnabled, types.KeyStateUpdating:
		return kek.StateEnabled
	case types.KeyStateDisabled, types.KeyStatePendingImport:
		return kek.StateDisabled
	case types.KeyStatePendingDeletion, types.KeyStatePendingReplicaDeletion:
		return kek.StatePendingDeletion
	}
	return kek.StateUnknown
}

func versionOf(materialID *string) string {
	if aws.ToString(materialID) == "" {
		return unversioned
	}
	return *materialID
}

// Wrap encrypts plaintext, decrypts the result to learn which key material was
// used, and compares.
func (p *Provider) Wrap(ctx context.Context, plaintext []byte) (kek.Wrapped, error) {
	if n := len(plaintext); n == 0 || n > kek.MaxPlaintext {
		return kek.Wrapped{}, p.refuse(kek.OpWrap, kek.Invalid, fmt.Errorf("a key of %d bytes: 1 to %d are wrapped", n, kek.MaxPlaintext))
	}
	arn, err := p.resolve(ctx, kek.OpWrap)
	if err != nil {
		return kek.Wrapped{}, err
	}
	out, err := p.kms.Encrypt(ctx, &kms.EncryptInput{KeyId: &arn, Plaintext: plaintext, EncryptionContext: p.binding})
	if err != nil {
		return kek.Wrapped{}, p.failOnKey(ctx, kek.OpWrap, "kms:Encrypt", arn, err)
	}
	if len(out.CiphertextBlob) == 0 {
		return kek.Wrapped{}, p.garbled(kek.OpWrap, "Encrypt")
	}
	back, version, err := p.decrypt(ctx, kek.OpWrap, arn, out.CiphertextBlob)
	if err != nil {
		return kek.Wrapped{}, err
	}
	defer clear(back)
	if subtle.ConstantTimeCompare(back, plaintext) != 1 {
		return kek.Wrapped{}, p.refuse(kek.OpWrap, kek.Corrupt, errors.New("what Encrypt returned decrypts to something else"))
	}
	return kek.Wrapped{Key: kek.KeyRef{ID: arn, Version: version}, Ciphertext: out.CiphertextBlob}, nil
}

// Unwrap makes one Decrypt, pinned to the key. w.Key.Version is not needed: the
// ciphertext names its key material itself.
func (p *Provider) Unwrap(ctx context.Context, w kek.Wrapped) ([]byte, error) {
	arn, err := p.resolve(ctx, kek.OpUnwrap)
	if err != nil {
		return nil, err
	}
	if w.Key.ID != arn {
		return nil, p.refuse(kek.OpUnwrap, kek.Invalid, fmt.Errorf("wrapped by %q, which is another key", w.Key.ID))
	}
	plaintext, _, err := p.decrypt(ctx, kek.OpUnwrap, arn, w.Ciphertext)
	return plaintext, err
}

func (p *Provider) decrypt(ctx context.Context, op kek.Op, arn string, ciphertext []byte) (plaintext []byte, version string, err error) {
	out, err := p.kms.Decrypt(ctx, &kms.DecryptInput{KeyId: &arn, CiphertextBlob: ciphertext, EncryptionContext: p.binding})
	switch {
	case err != nil:
		return nil, "", p.failOnKey(ctx, op, "kms:Decrypt", arn, err)
	case len(out.Plaintext) == 0 || aws.ToString(out.KeyId) != arn:
		clear(out.Plaintext)
		return nil, "", p.garbled(op, "Decrypt")
	}
	return out.Plaintext, versionOf(out.KeyMaterialId), nil
}

// resolve returns the key's ARN, asking for it if it is not known yet.
func (p *Provider) resolve(ctx context.Context, op kek.Op) (string, error) {
	if arn := p.known(); arn != "" {
		return arn, nil
	}
	md, err := p.describe(ctx, op, p.name)
	if err != nil {
		return "", err
	}
	return p.keepTo(*md.Arn), nil
}

func (p *Provider) known() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.arn
}

// keepTo makes arn the provider's key unless it has one, and returns which it has.
func (p *Provider) keepTo(arn string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.arn == "" {
		p.arn = arn
	}
	return p.arn
}

// Facts returns what the last Current was told.
func (p *Provider) Facts() kek.Facts {
	p.mu.Lock()
	defer p.mu.Unlock()
	f := p.facts
	f.Notes = slices.Clone(f.Notes)
	return f
}

// Identity returns the ARN of the principal that the credentials are of. STS
// answers it without any permission.
func (p *Provider) Identity(ctx context.Context) (string, error) {
	out, err := p.sts.GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{})
	if err != nil {
		return "", p.fail(kek.OpIdentity, "sts:GetCallerIdentity", err)
	}
	return aws.ToString(out.Arn), nil
}

// Close closes idle connections.
func (p *Provider) Close() error {
	p.http.CloseIdleConnections()
	return nil
}

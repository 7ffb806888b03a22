package gcpkmstest

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"fmt"
	"hash/crc32"
	"strconv"
	"strings"
	"time"

	"cloud.google.com/go/kms/apiv1/kmspb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// key is a CryptoKey. Its versions are numbered from 1.
type key struct {
	about    *kmspb.CryptoKey // without its primary
	versions []*version
	primary  int // 0 if there is none
	lag      Lag
	lagged   int // the version that lagging methods still take for the primary one
}

type version struct {
	about *kmspb.CryptoKeyVersion
	id    [16]byte // at the beginning of each ciphertext
	aead  cipher.AEAD
}

// CreateKey makes a symmetric encryption key with one version, which is the
// primary one, and returns its resource name.
func (s *Server) CreateKey() string {
	name := s.CreateKeyOf(kmspb.CryptoKey_ENCRYPT_DECRYPT)
	s.Rotate(name)
	return name
}

// CreateKeyOf makes a key of any purpose without versions, to be described and
// refused, and returns its resource name.
func (s *Server) CreateKeyOf(purpose kmspb.CryptoKey_CryptoKeyPurpose) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	name := fmt.Sprintf("%s/cryptoKeys/key-%d", s.keyRing, len(s.keys)+1)
	s.keys[name] = &key{about: &kmspb.CryptoKey{Name: name, Purpose: purpose, CreateTime: timestamppb.Now()}}
	return name
}

// change panics for a key that does not exist: that is a mistake of the test.
func (s *Server) change(name string, f func(*key)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k, ok := s.keys[name]
	if !ok {
		panic("gcpkmstest: no key " + name)
	}
	f(k)
}

// Rotate makes a new version, makes it the primary one and returns its number.
func (s *Server) Rotate(name string) string {
	number := s.AddVersion(name)
	s.SetPrimary(name, number)
	return number
}

// AddVersion makes a new version, which is not the primary one, and returns its number.
func (s *Server) AddVersion(name string) (number string) {
	s.change(name, func(k *key) {
		number = strconv.Itoa(len(k.versions) + 1)
		v := &version{about: &kmspb.CryptoKeyVersion{
			Name: name + "/cryptoKeyVersions/" + number, State: kmspb.CryptoKeyVersion_ENABLED,
			ProtectionLevel: kmspb.ProtectionLevel_SOFTWARE, Algorithm: kmspb.CryptoKeyVersion_GOOGLE_SYMMETRIC_ENCRYPTION,
			CreateTime: timestamppb.Now(), GenerateTime: timestamppb.Now(),
		}}
		var secret [32]byte
		rand.Read(secret[:])
		rand.Read(v.id[:])
		block, err := aes.NewCipher(secret[:])
		if err == nil {
			v.aead, err = cipher.NewGCMWithRandomNonce(block)
		}
		if err != nil {
			panic(err)
		}
		k.versions = append(k.versions, v)
	})
	return number
}

// SetPrimary makes an existing version the primary one; "" leaves the key without.
func (s *Server) SetPrimary(name, number string) {
	s.change(name, func(k *key) {
		k.primary = 0
		if number != "" {
			k.version(number) // panics if there is none
			k.primary, _ = strconv.Atoi(number)
		}
	})
}

func (k *key) version(number string) *version {
	n, err := strconv.Atoi(number)
	if err != nil || n < 1 || n > len(k.versions) {
		panic("gcpkmstest: " + k.about.Name + " has no version " + number)
	}
	return k.versions[n-1]
}

// SetState sets the state of a version. One that is scheduled for destruction is
// due in 30 days.
func (s *Server) SetState(name, number string, state kmspb.CryptoKeyVersion_CryptoKeyVersionState) {
	s.change(name, func(k *key) { k.version(number).setState(state) })
}

func (v *version) setState(state kmspb.CryptoKeyVersion_CryptoKeyVersionState) {
	v.about.State, v.about.DestroyTime, v.about.DestroyEventTime = state, nil, nil
	switch state {
	case kmspb.CryptoKeyVersion_DESTROY_SCHEDULED:
		v.about.DestroyTime = timestamppb.New(time.Now().Add(30 * 24 * time.Hour))
	case kmspb.CryptoKeyVersion_DESTROYED:
		v.about.DestroyEventTime = timestamppb.Now()
	}
}

// Disable disables all versions of a key.
func (s *Server) Disable(name string) { s.setAll(name, kmspb.CryptoKeyVersion_DISABLED) }

// Enable enables all versions of a key.
func (s *Server) Enable(name string) { s.setAll(name, kmspb.CryptoKeyVersion_ENABLED) }

func (s *Server) setAll(name string, state kmspb.CryptoKeyVersion_CryptoKeyVersionState) {
	s.change(name, func(k *key) {
		for _, v := range k.versions {
			v.setState(state)
		}
	})
}

// SetRotation sets the period after which KMS would rotate, 0 for never.
func (s *Server) SetRotation(name string, period time.Duration) {
	s.change(name, func(k *key) {
		k.about.RotationSchedule, k.about.NextRotationTime = nil, nil
		if period > 0 {
			k.about.RotationSchedule = &kmspb.CryptoKey_RotationPeriod{RotationPeriod: durationpb.New(period)}
			k.about.NextRotationTime = timestamppb.New(time.Now().Add(period))
		}
	})
}

// SetProtection sets the protection level that all versions of a key claim.
func (s *Server) SetProtection(name string, level kmspb.ProtectionLevel) {
	s.change(name, func(k *key) {
		for _, v := range k.versions {
			v.about.ProtectionLevel = level
		}
	})
}

// Lag says which methods go on with the version that is primary now, as KMS does
// for minutes to hours after a change. Encrypt lags only where the request names
// the key and not a version.
type Lag struct{ GetCryptoKey, Encrypt bool }

// SetLag makes methods lag until the next SetLag of that key; Lag{} catches up.
func (s *Server) SetLag(name string, l Lag) {
	s.change(name, func(k *key) { k.lag, k.lagged = l, k.primary })
}

func (k *key) primaryAs(lagging bool) *version {
	n := k.primary
	if lagging {
		n = k.lagged
	}
	if n == 0 {
		return nil
	}
	return k.versions[n-1]
}

// GetCryptoKey describes a key.
func (s *Server) GetCryptoKey(ctx context.Context, req *kmspb.GetCryptoKeyRequest) (*kmspb.CryptoKey, error) {
	if err := s.permit(ctx, "cloudkms.cryptoKeys.get", req.Name); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	k, err := s.find(req.Name)
	if err != nil {
		return nil, err
	}
	out := proto.Clone(k.about).(*kmspb.CryptoKey)
	if v := k.primaryAs(k.lag.GetCryptoKey); v != nil {
		out.Primary = proto.Clone(v.about).(*kmspb.CryptoKeyVersion)
	}
	return out, nil
}

// find is called with the lock held.
func (s *Server) find(name string) (*key, error) {
	if k, ok := s.keys[name]; ok {
		return k, nil
	}
	return nil, status.Errorf(codes.NotFound, "CryptoKey %s not found.", name)
}

// maxData is the limit of plaintexts and of additional data in bytes.
const maxData = 64 << 10

// Encrypt encrypts with the version that is named, or with the primary one.
func (s *Server) Encrypt(ctx context.Context, req *kmspb.EncryptRequest) (*kmspb.EncryptResponse, error) {
	name, number, pinned := strings.Cut(req.Name, "/cryptoKeyVersions/")
	if err := s.permit(ctx, "cloudkms.cryptoKeyVersions.useToEncrypt", name); err != nil {
		return nil, err
	}
	aad := req.AdditionalAuthenticatedData
	if len(req.Plaintext) > maxData || len(aad) > maxData {
		return nil, status.Errorf(codes.InvalidArgument, "plaintext and additional_authenticated_data must be no larger than %d bytes.", maxData)
	}
	if err := verify("plaintext", req.Plaintext, req.PlaintextCrc32C); err != nil {
		return nil, err
	}
	if err := verify("additional_authenticated_data", aad, req.AdditionalAuthenticatedDataCrc32C); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	k, err := s.find(name)
	if err != nil {
		return nil, err
	}
	v := k.primaryAs(k.lag.Encrypt)
	if pinned {
		n, err := strconv.Atoi(number)
		if err != nil || n < 1 || n > len(k.versions) {
			return nil, status.Errorf(codes.NotFound, "CryptoKeyVersion %s not found.", req.Name)
		}
		v = k.versions[n-1]
	}
	if k.about.Purpose != kmspb.CryptoKey_ENCRYPT_DECRYPT || v == nil {
		return nil, status.Errorf(codes.FailedPrecondition, "%s cannot be used to encrypt: its purpose is %s and it may lack a primary version.", name, k.about.Purpose)
	}
	if err := v.usable(); err != nil {
		return nil, err
	}
	ciphertext := append(v.id[:], v.aead.Seal(nil, nil, req.Plaintext, aad)...)
	return &kmspb.EncryptResponse{
		Name: v.about.Name, Ciphertext: ciphertext, CiphertextCrc32C: checksum(ciphertext),
		VerifiedPlaintextCrc32C:                   req.PlaintextCrc32C != nil,
		VerifiedAdditionalAuthenticatedDataCrc32C: req.AdditionalAuthenticatedDataCrc32C != nil,
		ProtectionLevel:                           v.about.ProtectionLevel,
	}, nil
}

// Decrypt decrypts with the version that the ciphertext names.
func (s *Server) Decrypt(ctx context.Context, req *kmspb.DecryptRequest) (*kmspb.DecryptResponse, error) {
	if err := s.permit(ctx, "cloudkms.cryptoKeyVersions.useToDecrypt", req.Name); err != nil {
		return nil, err
	}
	if strings.Contains(req.Name, "/cryptoKeyVersions/") {
		return nil, status.Error(codes.InvalidArgument, "Decrypt takes the name of a CryptoKey.")
	}
	aad := req.AdditionalAuthenticatedData
	if err := verify("ciphertext", req.Ciphertext, req.CiphertextCrc32C); err != nil {
		return nil, err
	}
	if err := verify("additional_authenticated_data", aad, req.AdditionalAuthenticatedDataCrc32C); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	k, err := s.find(req.Name)
	if err != nil {
		return nil, err
	}
	if len(req.Ciphertext) < 16 {
		return nil, status.Error(codes.InvalidArgument, "Decryption failed: the ciphertext is invalid.")
	}
	for i, v := range k.versions {
		if v.id != [16]byte(req.Ciphertext[:16]) {
			continue
		}
		if err := v.usable(); err != nil {
			return nil, err
		}
		plaintext, err := v.aead.Open(nil, nil, req.Ciphertext[16:], aad)
		if err != nil {
			return nil, status.Error(codes.InvalidArgument, "Decryption failed: the ciphertext is invalid.")
		}
		return &kmspb.DecryptResponse{
			Plaintext: plaintext, PlaintextCrc32C: checksum(plaintext),
			UsedPrimary: i+1 == k.primary, ProtectionLevel: v.about.ProtectionLevel,
		}, nil
	}
	return nil, status.Error(codes.InvalidArgument, "Decryption failed: verify that 'name' refers to the correct CryptoKey.")
}

// usable refuses a version in the words of KMS.
func (v *version) usable() error {
	kind := "KEY_DISABLED"
	switch v.about.State {
	case kmspb.CryptoKeyVersion_ENABLED:
		return nil
	case kmspb.CryptoKeyVersion_PENDING_GENERATION:
		kind = "KEY_PENDING_GENERATION"
	case kmspb.CryptoKeyVersion_DESTROY_SCHEDULED, kmspb.CryptoKeyVersion_DESTROYED:
		kind = "KEY_DESTROYED"
	}
	return refuse(codes.FailedPrecondition,
		fmt.Sprintf("%s is not enabled, current state is: %s.", v.about.Name, v.about.State), violation(kind, v.about.Name))
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(b []byte) *wrapperspb.Int64Value {
	return wrapperspb.Int64(int64(crc32.Checksum(b, castagnoli)))
}

// verify refuses data that does not match the checksum, if one came with it.
func verify(field string, b []byte, sum *wrapperspb.Int64Value) error {
	if sum == nil || sum.Value == checksum(b).Value {
		return nil
	}
	return status.Errorf(codes.InvalidArgument, "The checksum in field %s_crc32c did not match the data in field %s.", field, field)
}

package gcpkmstest_test

import (
	"testing"

	"cloud.google.com/go/kms/apiv1/kmspb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
)

// TestDifferencesFromGoogle lists where the stand-in knowingly differs from
// Google Cloud KMS, and shows each.
func TestDifferencesFromGoogle(t *testing.T) {
	l := newLab(t)
	for _, difference := range []struct {
		words string
		shown func(t *testing.T) bool
	}{
		{"keys and versions are made, enabled, destroyed and made primary by the server's own methods, not by API", func(t *testing.T) bool {
			key := l.CreateKey()
			_, create := l.api.CreateCryptoKeyVersion(l.as(root), &kmspb.CreateCryptoKeyVersionRequest{Parent: key})
			_, update := l.api.UpdateCryptoKeyVersion(l.as(root), &kmspb.UpdateCryptoKeyVersionRequest{
				CryptoKeyVersion: &kmspb.CryptoKeyVersion{Name: key + "/cryptoKeyVersions/1"}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"state"}},
			})
			return status.Code(create) == codes.Unimplemented && status.Code(update) == codes.Unimplemented
		}},
		{"permissions are lists of a principal: no roles, conditions, or policies of keys, key rings and projects", func(t *testing.T) bool {
			_, err := l.api.ResourceIAM(l.CreateKey()).V3().Policy(l.as(root))
			return status.Code(err) == codes.Unimplemented
		}},
		{"any state may follow any other, and a destroyed version may come back", func(t *testing.T) bool {
			key := l.CreateKey()
			l.SetState(key, "1", kmspb.CryptoKeyVersion_DESTROYED)
			l.Enable(key)
			_, err := l.encrypt(l.as(root), key)
			return err == nil
		}},
		{"a change of state is seen at once, where Google may take minutes to hours; only the primary version lags, on demand", func(t *testing.T) bool {
			key := l.CreateKey()
			l.Disable(key)
			_, err := l.encrypt(l.as(root), key)
			return status.Code(err) == codes.FailedPrecondition
		}},
		{"a rotation period is a setting that never comes to pass", func(t *testing.T) bool {
			key := l.CreateKey()
			l.SetRotation(key, 1)
			about, err := l.api.GetCryptoKey(l.as(root), &kmspb.GetCryptoKeyRequest{Name: key})
			return err == nil && about.Primary.Name == key+"/cryptoKeyVersions/1"
		}},
		{"keys of other purposes than symmetric encryption can be described and do nothing", func(t *testing.T) bool {
			_, err := l.api.AsymmetricDecrypt(l.as(root), &kmspb.AsymmetricDecryptRequest{Name: l.CreateKeyOf(kmspb.CryptoKey_ASYMMETRIC_DECRYPT)})
			return status.Code(err) == codes.Unimplemented
		}},
		{"a protection level is a word: an HSM's limit of 8 KiB is that of software, 64 KiB", func(t *testing.T) bool {
			key := l.CreateKey()
			l.SetProtection(key, kmspb.ProtectionLevel_HSM)
			out, err := l.encrypt(l.as(root), key, func(r *kmspb.EncryptRequest) { r.Plaintext = make([]byte, 9<<10) })
			return err == nil && out.ProtectionLevel == kmspb.ProtectionLevel_HSM
		}},
		{"the project has one name, where Google knows it by its number too", func(t *testing.T) bool {
			l.CreateKey()
			_, err := l.api.GetCryptoKey(l.as(root), &kmspb.GetCryptoKeyRequest{Name: "projects/1/locations/europe-west1/keyRings/r/cryptoKeys/key-1"})
			return status.Code(err) == codes.NotFound
		}},
		{"a rate has no limit: throttling comes only from SetFault", func(t *testing.T) bool {
			key := l.CreateKey()
			for range 400 {
				if _, err := l.api.GetCryptoKey(l.as(root), &kmspb.GetCryptoKeyRequest{Name: key}); err != nil {
					return false
				}
			}
			return true
		}},
	} {
		t.Run(difference.words, func(t *testing.T) {
			if !difference.shown(t) {
				t.Error("no such difference")
			}
		})
	}
}

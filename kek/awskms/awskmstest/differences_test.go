package awskmstest_test

import (
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

// TestDifferencesFromAWS lists where the stand-in knowingly differs from AWS, and
// shows each.
func TestDifferencesFromAWS(t *testing.T) {
	l := newLab(t)
	ctx, client := t.Context(), l.client(l.root)
	for _, difference := range []struct {
		words string
		shown func(t *testing.T) bool
	}{
		{"a parameter that the stand-in does not know is an error, where AWS obeys it (DryRun, Recipient, GrantTokens)", func(t *testing.T) bool {
			key := l.CreateKey()
			_, err := client.Encrypt(ctx, &kms.EncryptInput{KeyId: &key, Plaintext: []byte("x"), DryRun: aws.Bool(true)})
			return codeOf(t, err) == "SerializationException"
		}},
		{"policies are lists of actions of a principal: no key policy, grant, condition or other account", func(t *testing.T) bool {
			_, err := client.GetKeyPolicy(ctx, &kms.GetKeyPolicyInput{KeyId: aws.String(l.CreateKey())})
			return codeOf(t, err) == "UnknownOperationException"
		}},
		{"a rotation is done at once, where AWS takes a while and shows it in OnDemandRotationStartDate", func(t *testing.T) bool {
			key := l.CreateKey()
			must[*kms.RotateKeyOnDemandOutput](t)(client.RotateKeyOnDemand(ctx, &kms.RotateKeyOnDemandInput{KeyId: &key}))
			return must[*kms.GetKeyRotationStatusOutput](t)(client.GetKeyRotationStatus(ctx, &kms.GetKeyRotationStatusInput{KeyId: &key})).OnDemandRotationStartDate == nil
		}},
		{"automatic rotation is a setting that never comes to pass", func(t *testing.T) bool {
			key := l.CreateKey()
			must[*kms.EnableKeyRotationOutput](t)(client.EnableKeyRotation(ctx, &kms.EnableKeyRotationInput{KeyId: &key}))
			return len(must[*kms.ListKeyRotationsOutput](t)(client.ListKeyRotations(ctx, &kms.ListKeyRotationsInput{KeyId: &key})).Rotations) == 0
		}},
		{"a key that is pending deletion can be enabled again by the test", func(t *testing.T) bool {
			key := l.CreateKey()
			l.ScheduleDeletion(key)
			l.Enable(key)
			return must[*kms.DescribeKeyOutput](t)(client.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: &key})).KeyMetadata.Enabled
		}},
		{"keys of other kinds than symmetric encryption can be described and do nothing", func(t *testing.T) bool {
			key := l.CreateKeyOf("RSA_2048", "ENCRYPT_DECRYPT")
			_, err := client.Encrypt(ctx, &kms.EncryptInput{KeyId: &key, Plaintext: []byte("x"), EncryptionAlgorithm: types.EncryptionAlgorithmSpecRsaesOaepSha256})
			return codeOf(t, err) == "UnsupportedOperationException"
		}},
		{"keys have no imported material, custom key store or other regions", func(t *testing.T) bool {
			_, err := client.CreateKey(ctx, &kms.CreateKeyInput{Origin: types.OriginTypeExternal})
			return codeOf(t, err) == "UnsupportedOperationException"
		}},
		{"a rate has no limit: throttling comes only from SetFault", func(t *testing.T) bool {
			key := l.CreateKey()
			for range 100 {
				must[*kms.DescribeKeyOutput](t)(client.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: &key}))
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

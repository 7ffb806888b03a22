package awskmstest_test

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/smithy-go"
	"github.com/google/go-cmp/cmp"
	"github.com/kube-kek/kube-kek/kek/awskms/awskmstest"
)

const region = "eu-west-1"

// lab is a server with one principal that may do all.
type lab struct {
	*awskmstest.Server
	url  string
	root awskmstest.Principal
}

func newLab(t *testing.T) lab {
	s := awskmstest.New(awskmstest.Config{Region: region})
	hs := s.Start()
	t.Cleanup(hs.Close)
	return lab{s, hs.URL, s.AddPrincipal(awskmstest.Principal{Allow: []string{"*"}})}
}

func credentials(p awskmstest.Principal) aws.CredentialsProvider {
	return aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
		return aws.Credentials{AccessKeyID: p.AccessKeyID, SecretAccessKey: p.SecretAccessKey, SessionToken: p.SessionToken}, nil
	})
}

func (l lab) client(p awskmstest.Principal, optFns ...func(*kms.Options)) *kms.Client {
	return kms.New(kms.Options{
		BaseEndpoint: &l.url, Region: region, Retryer: aws.NopRetryer{}, Credentials: credentials(p),
	}, optFns...)
}

// codeOf is the AWS error code of err, and checks that a request ID came with it.
func codeOf(t *testing.T, err error) string {
	t.Helper()
	var api smithy.APIError
	if !errors.As(err, &api) {
		t.Fatalf("no error of AWS: %v", err)
	}
	var resp *awshttp.ResponseError
	if !errors.As(err, &resp) || resp.RequestID == "" {
		t.Errorf("%s came without a request ID", api.ErrorCode())
	}
	return api.ErrorCode()
}

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func TestCiphertextsOpenOnlyAsTheyWereSealed(t *testing.T) {
	l := newLab(t)
	ctx, client := t.Context(), l.client(l.root)
	key, other := l.CreateKey(), l.CreateKey()
	plaintext := bytes.Repeat([]byte("k"), 32)
	bound := map[string]string{"cluster": "a", "team": "b"}
	enc := must[*kms.EncryptOutput](t)(client.Encrypt(ctx, &kms.EncryptInput{KeyId: &key, Plaintext: plaintext, EncryptionContext: bound}))
	if len(enc.CiphertextBlob) != 184 {
		t.Errorf("the blob of a 32-byte key has %d bytes, AWS's has 184", len(enc.CiphertextBlob))
	}
	if got := aws.ToString(enc.KeyId); got != key {
		t.Errorf("Encrypt says that it used %s, want %s", got, key)
	}

	described := must[*kms.DescribeKeyOutput](t)(client.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: &key}))
	material := aws.ToString(described.KeyMetadata.CurrentKeyMaterialId)
	if len(material) != 64 {
		t.Errorf("key material ID %q, want 64 hex digits", material)
	}
	for _, pin := range []*string{&key, nil} {
		dec := must[*kms.DecryptOutput](t)(client.Decrypt(ctx, &kms.DecryptInput{KeyId: pin, CiphertextBlob: enc.CiphertextBlob, EncryptionContext: bound}))
		got := []string{string(dec.Plaintext), aws.ToString(dec.KeyId), aws.ToString(dec.KeyMaterialId)}
		if diff := cmp.Diff([]string{string(plaintext), key, material}, got); diff != "" {
			t.Errorf("Decrypt (-want +got):\n%s", diff)
		}
	}

	decrypt := func(key string, blob []byte, bound map[string]string) string {
		_, err := client.Decrypt(ctx, &kms.DecryptInput{KeyId: &key, CiphertextBlob: blob, EncryptionContext: bound})
		return codeOf(t, err)
	}
	if got := decrypt(other, enc.CiphertextBlob, bound); got != "IncorrectKeyException" {
		t.Errorf("under another key: %s", got)
	}
	for name, wrong := range map[string]map[string]string{
		"no context":      nil,
		"another cluster": {"cluster": "b", "team": "b"},
		"a pair less":     {"cluster": "a"},
		"a pair more":     {"cluster": "a", "team": "b", "x": "y"},
	} {
		if got := decrypt(key, enc.CiphertextBlob, wrong); got != "InvalidCiphertextException" {
			t.Errorf("%s: %s", name, got)
		}
	}
	for i := range enc.CiphertextBlob {
		flipped := bytes.Clone(enc.CiphertextBlob)
		flipped[i] ^= 1
		if got := decrypt(key, flipped, bound); got != "InvalidCiphertextException" {
			t.Errorf("byte %d flipped: %s", i, got)
		}
		if i == 0 {
			continue
		}
		if got := decrypt(key, enc.CiphertextBlob[:i], bound); got != "InvalidCiphertextException" {
			t.Errorf("cut to %d bytes: %s", i, got)
		}
	}
}

func TestOldMaterialsGoOnDecryptingAfterARotation(t *testing.T) {
	l := newLab(t)
	ctx, client, key := t.Context(), l.client(l.root), l.CreateKey()
	current := func() string {
		out := must[*kms.DescribeKeyOutput](t)(client.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: &key}))
		return aws.ToString(out.KeyMetadata.CurrentKeyMaterialId)
	}
	first := current()
	data := must[*kms.GenerateDataKeyOutput](t)(client.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: &key, KeySpec: types.DataKeySpecAes256}))
	must[*kms.RotateKeyOnDemandOutput](t)(client.RotateKeyOnDemand(ctx, &kms.RotateKeyOnDemandInput{KeyId: &key}))
	second := current()
	if first == second {
		t.Fatal("RotateKeyOnDemand left the current key material")
	}
	dec := must[*kms.DecryptOutput](t)(client.Decrypt(ctx, &kms.DecryptInput{KeyId: &key, CiphertextBlob: data.CiphertextBlob}))
	again := must[*kms.ReEncryptOutput](t)(client.ReEncrypt(ctx, &kms.ReEncryptInput{CiphertextBlob: data.CiphertextBlob, DestinationKeyId: &key}))
	got := []string{
		aws.ToString(data.KeyMaterialId), aws.ToString(dec.KeyMaterialId),
		aws.ToString(again.SourceKeyMaterialId), aws.ToString(again.DestinationKeyMaterialId),
	}
	if diff := cmp.Diff([]string{first, first, first, second}, got); diff != "" {
		t.Errorf("key materials of GenerateDataKey, Decrypt, ReEncrypt from and to (-want +got):\n%s", diff)
	}
	if !bytes.Equal(dec.Plaintext, data.Plaintext) {
		t.Error("Decrypt returned another data key")
	}

	all := must[*kms.ListKeyRotationsOutput](t)(client.ListKeyRotations(ctx, &kms.ListKeyRotationsInput{KeyId: &key, IncludeKeyMaterial: types.IncludeKeyMaterialAllKeyMaterial}))
	rotations := must[*kms.ListKeyRotationsOutput](t)(client.ListKeyRotations(ctx, &kms.ListKeyRotationsInput{KeyId: &key}))
	if len(all.Rotations) != 2 || len(rotations.Rotations) != 1 {
		t.Fatalf("%d materials and %d rotations, want 2 and 1", len(all.Rotations), len(rotations.Rotations))
	}
	r := rotations.Rotations[0]
	if aws.ToString(r.KeyMaterialId) != second || r.KeyMaterialState != types.KeyMaterialStateCurrent || r.RotationType != types.RotationTypeOnDemand || r.RotationDate == nil {
		t.Errorf("the rotation is %+v", r)
	}
	page := must[*kms.ListKeyRotationsOutput](t)(client.ListKeyRotations(ctx, &kms.ListKeyRotationsInput{KeyId: &key, Limit: aws.Int32(1), IncludeKeyMaterial: types.IncludeKeyMaterialAllKeyMaterial}))
	rest := must[*kms.ListKeyRotationsOutput](t)(client.ListKeyRotations(ctx, &kms.ListKeyRotationsInput{KeyId: &key, Marker: page.NextMarker, IncludeKeyMaterial: types.IncludeKeyMaterialAllKeyMaterial}))
	if !page.Truncated || rest.Truncated || len(rest.Rotations) != 1 || aws.ToString(rest.Rotations[0].KeyMaterialId) != second {
		t.Errorf("the pages are %+v and %+v", page.Rotations, rest.Rotations)
	}
}

func TestARotationMayBeSeenLateByEachActionOnItsOwn(t *testing.T) {
	l := newLab(t)
	ctx, client, key := t.Context(), l.client(l.root), l.CreateKey()
	seen := func() (described, used string) {
		out := must[*kms.DescribeKeyOutput](t)(client.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: &key}))
		data := must[*kms.GenerateDataKeyOutput](t)(client.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: &key, NumberOfBytes: aws.Int32(32)}))
		return aws.ToString(out.KeyMetadata.CurrentKeyMaterialId), aws.ToString(data.KeyMaterialId)
	}
	first, _ := seen()
	l.SetLag(key, awskmstest.Lag{DescribeKey: true, Encrypt: true})
	second := l.Rotate(key)
	for _, step := range []struct {
		lag             awskmstest.Lag
		described, used string
	}{
		{awskmstest.Lag{DescribeKey: true, Encrypt: true}, first, first},
		{awskmstest.Lag{}, second, second},
	} {
		if step.lag == (awskmstest.Lag{}) {
			l.SetLag(key, step.lag)
		}
		if described, used := seen(); described != step.described || used != step.used {
			t.Errorf("with %+v DescribeKey sees %.8s and Encrypt uses %.8s, want %.8s and %.8s", step.lag, described, used, step.described, step.used)
		}
	}
	l.SetLag(key, awskmstest.Lag{DescribeKey: true})
	third := l.Rotate(key)
	if described, used := seen(); described != second || used != third {
		t.Errorf("with a lag of DescribeKey alone it sees %.8s and Encrypt uses %.8s, want %.8s and %.8s", described, used, second, third)
	}
}

func TestKeyStatesAreObeyed(t *testing.T) {
	l := newLab(t)
	ctx, client, key := t.Context(), l.client(l.root), l.CreateKey()
	encrypt := func() string {
		_, err := client.Encrypt(ctx, &kms.EncryptInput{KeyId: &key, Plaintext: []byte("x")})
		if err == nil {
			return ""
		}
		return codeOf(t, err)
	}
	state := func() types.KeyState {
		return must[*kms.DescribeKeyOutput](t)(client.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: &key})).KeyMetadata.KeyState
	}
	check := func(what string, wantState types.KeyState, wantCode string) {
		t.Helper()
		if s, c := state(), encrypt(); s != wantState || c != wantCode {
			t.Errorf("%s: state %s and Encrypt says %q, want %s and %q", what, s, c, wantState, wantCode)
		}
	}
	check("new", types.KeyStateEnabled, "")
	must[*kms.DisableKeyOutput](t)(client.DisableKey(ctx, &kms.DisableKeyInput{KeyId: &key}))
	check("disabled", types.KeyStateDisabled, "DisabledException")
	must[*kms.EnableKeyOutput](t)(client.EnableKey(ctx, &kms.EnableKeyInput{KeyId: &key}))
	check("enabled", types.KeyStateEnabled, "")
	out := must[*kms.ScheduleKeyDeletionOutput](t)(client.ScheduleKeyDeletion(ctx, &kms.ScheduleKeyDeletionInput{KeyId: &key, PendingWindowInDays: aws.Int32(7)}))
	check("pending deletion", types.KeyStatePendingDeletion, "KMSInvalidStateException")
	if d := time.Until(aws.ToTime(out.DeletionDate)); d < 6*24*time.Hour || d > 8*24*time.Hour {
		t.Errorf("deletion in %v, want 7 days", d)
	}
	if _, err := client.EnableKey(ctx, &kms.EnableKeyInput{KeyId: &key}); codeOf(t, err) != "KMSInvalidStateException" {
		t.Errorf("EnableKey while pending deletion: %v", err)
	}
	must[*kms.CancelKeyDeletionOutput](t)(client.CancelKeyDeletion(ctx, &kms.CancelKeyDeletionInput{KeyId: &key}))
	check("deletion cancelled", types.KeyStateDisabled, "DisabledException")
	l.SetState(key, awskmstest.PendingImport)
	check("pending import", types.KeyStatePendingImport, "KMSInvalidStateException")
	l.Enable(key)
	must[*kms.EnableKeyRotationOutput](t)(client.EnableKeyRotation(ctx, &kms.EnableKeyRotationInput{KeyId: &key, RotationPeriodInDays: aws.Int32(90)}))
	status := must[*kms.GetKeyRotationStatusOutput](t)(client.GetKeyRotationStatus(ctx, &kms.GetKeyRotationStatusInput{KeyId: &key}))
	if !status.KeyRotationEnabled || aws.ToInt32(status.RotationPeriodInDays) != 90 || status.NextRotationDate == nil {
		t.Errorf("rotation status %+v", status)
	}
	l.Delete(key)
	if got := encrypt(); got != "NotFoundException" {
		t.Errorf("deleted: %s", got)
	}
}

func TestBadRequestsGetAWSsErrorCodes(t *testing.T) {
	l := newLab(t)
	key, rsa := l.CreateKey(), l.CreateKeyOf("RSA_2048", "SIGN_VERIFY")
	l.SetAlias("alias/here", key)
	client := l.client(l.root)
	encrypt := func(key string, size int) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := client.Encrypt(ctx, &kms.EncryptInput{KeyId: &key, Plaintext: make([]byte, size)})
			return err
		}
	}
	for _, c := range []struct {
		name string
		do   func(context.Context) error
		want string
	}{
		{"the largest plaintext", encrypt(key, 4096), ""},
		{"a plaintext too large", encrypt(key, 4097), "ValidationException"},
		{"an empty plaintext", encrypt(key, 0), "ValidationException"},
		{"an alias", encrypt("alias/here", 1), ""},
		{"an alias that is not there", encrypt("alias/gone", 1), "NotFoundException"},
		{"an unknown key", encrypt("00000000-0000-4000-8000-000000000000", 1), "NotFoundException"},
		{"a key of another region", encrypt(strings.Replace(key, region, "us-east-1", 1), 1), "NotFoundException"},
		{"an ARN of another service", encrypt(strings.Replace(key, ":kms:", ":s3:", 1), 1), "InvalidArnException"},
		{"a key that signs", encrypt(rsa, 1), "InvalidKeyUsageException"},
		{"an asymmetric algorithm", func(ctx context.Context) error {
			_, err := client.Encrypt(ctx, &kms.EncryptInput{KeyId: &key, Plaintext: []byte("x"), EncryptionAlgorithm: types.EncryptionAlgorithmSpecRsaesOaepSha256})
			return err
		}, "InvalidKeyUsageException"},
		{"a ciphertext too large", func(ctx context.Context) error {
			_, err := client.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: make([]byte, 6145)})
			return err
		}, "ValidationException"},
		{"a data key of no size", func(ctx context.Context) error {
			_, err := client.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: &key})
			return err
		}, "ValidationException"},
		{"a deletion tomorrow", func(ctx context.Context) error {
			_, err := client.ScheduleKeyDeletion(ctx, &kms.ScheduleKeyDeletionInput{KeyId: &key, PendingWindowInDays: aws.Int32(1)})
			return err
		}, "ValidationException"},
		{"a rotation by alias", func(ctx context.Context) error {
			_, err := client.RotateKeyOnDemand(ctx, &kms.RotateKeyOnDemandInput{KeyId: aws.String("alias/here")})
			return err
		}, "NotFoundException"},
		{"a rotation of an RSA key", func(ctx context.Context) error {
			_, err := client.RotateKeyOnDemand(ctx, &kms.RotateKeyOnDemandInput{KeyId: &rsa})
			return err
		}, "UnsupportedOperationException"},
		{"an alias that exists", func(ctx context.Context) error {
			_, err := client.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: aws.String("alias/here"), TargetKeyId: &key})
			return err
		}, "AlreadyExistsException"},
		{"an alias of AWS's own", func(ctx context.Context) error {
			_, err := client.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: aws.String("alias/aws/s3"), TargetKeyId: &key})
			return err
		}, "InvalidAliasNameException"},
		{"an operation that it has not", func(ctx context.Context) error {
			_, err := client.ListKeys(ctx, &kms.ListKeysInput{})
			return err
		}, "UnknownOperationException"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := c.do(t.Context())
			if c.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if got := codeOf(t, err); got != c.want {
				t.Errorf("got %s (%v), want %s", got, err, c.want)
			}
		})
	}
}

func TestAliasesPointToKeys(t *testing.T) {
	l := newLab(t)
	ctx, client := t.Context(), l.client(l.root)
	a := must[*kms.CreateKeyOutput](t)(client.CreateKey(ctx, &kms.CreateKeyInput{Description: aws.String("first")})).KeyMetadata
	b := must[*kms.CreateKeyOutput](t)(client.CreateKey(ctx, &kms.CreateKeyInput{})).KeyMetadata
	alias := aws.String("alias/prod/kek")
	must[*kms.CreateAliasOutput](t)(client.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: alias, TargetKeyId: a.KeyId}))
	target := func() string {
		out := must[*kms.ListAliasesOutput](t)(client.ListAliases(ctx, &kms.ListAliasesInput{}))
		described := must[*kms.DescribeKeyOutput](t)(client.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: out.Aliases[0].AliasArn}))
		return aws.ToString(described.KeyMetadata.Arn)
	}
	if got := target(); got != aws.ToString(a.Arn) {
		t.Errorf("the alias points to %s, want %s", got, *a.Arn)
	}
	must[*kms.UpdateAliasOutput](t)(client.UpdateAlias(ctx, &kms.UpdateAliasInput{AliasName: alias, TargetKeyId: b.Arn}))
	if got := target(); got != aws.ToString(b.Arn) {
		t.Errorf("the alias points to %s, want %s", got, *b.Arn)
	}
	must[*kms.DeleteAliasOutput](t)(client.DeleteAlias(ctx, &kms.DeleteAliasInput{AliasName: alias}))
	if _, err := client.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: alias}); codeOf(t, err) != "NotFoundException" {
		t.Errorf("a deleted alias: %v", err)
	}
}

func TestFaultsBefallCalls(t *testing.T) {
	l := newLab(t)
	ctx, client, key := t.Context(), l.client(l.root), l.CreateKey()
	describe := func(ctx context.Context) error {
		_, err := client.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: &key})
		return err
	}
	l.SetFault(
		awskmstest.Fault{Actions: []string{"Encrypt"}, Code: "KMSInternalException"},
		awskmstest.Fault{Principal: "someone else", Drop: true},
		awskmstest.Fault{Times: 1, Code: "ThrottlingException", Message: "Rate exceeded", RetryAfter: 2 * time.Second},
		awskmstest.Fault{Times: 1, Status: http.StatusBadGateway, Body: []byte("<html>")},
		awskmstest.Fault{Times: 1, Body: []byte("{")},
		awskmstest.Fault{Times: 1, Drop: true},
		awskmstest.Fault{Times: 1, Latency: time.Millisecond},
	)
	err := describe(ctx)
	var resp *awshttp.ResponseError
	if codeOf(t, err) != "ThrottlingException" || !errors.As(err, &resp) || resp.Response.Header.Get("Retry-After") != "2" {
		t.Errorf("throttled: %v", err)
	}
	for _, body := range []string{"html", "json"} {
		var garbled *smithy.DeserializationError
		if err := describe(ctx); !errors.As(err, &garbled) {
			t.Errorf("a body that is bad %s: %v", body, err)
		}
	}
	if err := describe(ctx); err == nil || errors.As(err, &resp) && resp.HTTPStatusCode() != 0 {
		t.Errorf("a dropped connection: %v", err)
	}
	for range 2 {
		if err := describe(ctx); err != nil {
			t.Errorf("when the faults are spent: %v", err)
		}
	}
	if _, err := client.Encrypt(ctx, &kms.EncryptInput{KeyId: &key, Plaintext: []byte("x")}); codeOf(t, err) != "KMSInternalException" {
		t.Errorf("Encrypt: %v", err)
	}

	l.SetFault(awskmstest.Fault{Hang: true})
	l.ResetCalls()
	hanging, cancel := context.WithCancel(ctx)
	done := make(chan error)
	go func() { done <- describe(hanging) }()
	for l.Calls("DescribeKey") == 0 {
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("a call that hung and was cancelled: %v", err)
	}
	l.SetFault()
	if err := describe(ctx); err != nil {
		t.Errorf("without faults: %v", err)
	}
}

func TestOlderEndpointsTellNoKeyMaterial(t *testing.T) {
	s := awskmstest.New(awskmstest.Config{WithoutMaterialIDs: true, Region: region})
	hs := s.Start()
	t.Cleanup(hs.Close)
	l := lab{s, hs.URL, s.AddPrincipal(awskmstest.Principal{Allow: []string{"kms:*"}})}
	ctx, client, key := t.Context(), l.client(l.root), l.CreateKey()
	described := must[*kms.DescribeKeyOutput](t)(client.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: &key}))
	data := must[*kms.GenerateDataKeyOutput](t)(client.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: &key, KeySpec: types.DataKeySpecAes128}))
	if described.KeyMetadata.CurrentKeyMaterialId != nil || data.KeyMaterialId != nil {
		t.Error("a key material was named")
	}
}

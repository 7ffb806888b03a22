package awskmstest_test

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/google/go-cmp/cmp"
	"github.com/kube-kek/kube-kek/kek/awskms/awskmstest"
)

// lateSigner signs as if the clock were off.
type lateSigner struct{ by time.Duration }

func (s lateSigner) SignHTTP(ctx context.Context, c aws.Credentials, r *http.Request, hash, service, region string, at time.Time, optFns ...func(*v4.SignerOptions)) error {
	return v4.NewSigner().SignHTTP(ctx, c, r, hash, service, region, at.Add(s.by), optFns...)
}

// tamperer changes a header after it was signed.
type tamperer struct{ name, value string }

func (s tamperer) Do(r *http.Request) (*http.Response, error) {
	r.Header.Set(s.name, s.value)
	return http.DefaultClient.Do(r)
}

func TestSignaturesAndSessionsAreVerified(t *testing.T) {
	l := newLab(t)
	key := l.CreateKey()
	session := l.AddPrincipal(awskmstest.Principal{SessionToken: "the-session-token", Allow: []string{"kms:*"}})
	ended := l.AddPrincipal(awskmstest.Principal{SessionToken: "t", Expires: time.Now().Add(-time.Second), Allow: []string{"kms:*"}})
	with := func(p awskmstest.Principal, change func(*awskmstest.Principal)) awskmstest.Principal {
		change(&p)
		return p
	}
	for _, c := range []struct {
		name string
		who  awskmstest.Principal
		opt  func(*kms.Options)
		want string
	}{
		{"a good signature", l.root, nil, ""},
		{"a good session", session, nil, ""},
		{"an unknown access key", with(l.root, func(p *awskmstest.Principal) { p.AccessKeyID = "AKIANOBODY" }), nil, "UnrecognizedClientException"},
		{"a wrong secret", with(l.root, func(p *awskmstest.Principal) { p.SecretAccessKey += "x" }), nil, "InvalidSignatureException"},
		{"a wrong session token", with(session, func(p *awskmstest.Principal) { p.SessionToken += "x" }), nil, "UnrecognizedClientException"},
		{"a session without its token", with(session, func(p *awskmstest.Principal) { p.SessionToken = "" }), nil, "UnrecognizedClientException"},
		{"a session that has ended", ended, nil, "ExpiredTokenException"},
		{"a wrong region", l.root, func(o *kms.Options) { o.Region = "us-east-1" }, "InvalidSignatureException"},
		{"a clock 15 minutes slow", l.root, func(o *kms.Options) { o.HTTPSignerV4 = lateSigner{-15 * time.Minute} }, "InvalidSignatureException"},
		{"a clock 15 minutes fast", l.root, func(o *kms.Options) { o.HTTPSignerV4 = lateSigner{15 * time.Minute} }, "InvalidSignatureException"},
		{"a clock one minute slow", l.root, func(o *kms.Options) { o.HTTPSignerV4 = lateSigner{-time.Minute} }, ""},
		{"another target than was signed", l.root, func(o *kms.Options) {
			o.HTTPClient = tamperer{"X-Amz-Target", "TrentService.DisableKey"}
		}, "InvalidSignatureException"},
		{"a header that was not signed", l.root, func(o *kms.Options) { o.HTTPClient = tamperer{"X-Amz-More", "y"} }, "InvalidSignatureException"},
		{"no signature", l.root, func(o *kms.Options) { o.Credentials = aws.AnonymousCredentials{} }, "MissingAuthenticationTokenException"},
		{"half a signature", l.root, func(o *kms.Options) {
			o.HTTPClient = tamperer{"Authorization", "AWS4-HMAC-SHA256 Credential=x"}
		}, "IncompleteSignatureException"},
	} {
		t.Run(c.name, func(t *testing.T) {
			client := l.client(c.who)
			if c.opt != nil {
				client = l.client(c.who, c.opt)
			}
			_, err := client.DescribeKey(t.Context(), &kms.DescribeKeyInput{KeyId: &key})
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

func TestAPolicyPermitsOnlyWhatItLists(t *testing.T) {
	l := newLab(t)
	ctx, key := t.Context(), l.CreateKey()
	reader := l.AddPrincipal(awskmstest.Principal{Allow: []string{"kms:Decrypt", "kms:DescribeKey"}})
	enc := must[*kms.EncryptOutput](t)(l.client(l.root).Encrypt(ctx, &kms.EncryptInput{KeyId: &key, Plaintext: []byte("x")}))
	client := l.client(reader)
	must[*kms.DecryptOutput](t)(client.Decrypt(ctx, &kms.DecryptInput{KeyId: &key, CiphertextBlob: enc.CiphertextBlob}))
	_, err := client.Encrypt(ctx, &kms.EncryptInput{KeyId: &key, Plaintext: []byte("x")})
	if got := codeOf(t, err); got != "AccessDeniedException" || !strings.Contains(err.Error(), reader.ARN+" is not authorized to perform: kms:Encrypt") {
		t.Errorf("got %v", err)
	}
	l.RemovePrincipal(reader.AccessKeyID)
	if _, err := client.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: &key}); codeOf(t, err) != "UnrecognizedClientException" {
		t.Errorf("a principal that was removed: %v", err)
	}

	if all, by := l.Calls("Encrypt"), l.CallsBy(reader.ARN, "Encrypt"); all != 2 || by != 1 {
		t.Errorf("%d calls of Encrypt, %d of the reader's, want 2 and 1", all, by)
	}
	var codes []string
	for _, c := range l.Log() {
		codes = append(codes, c.Action+" "+c.Code)
		if c.KeyID != key || c.RequestID == "" {
			t.Errorf("logged %+v", c)
		}
	}
	if diff := cmp.Diff([]string{"Encrypt ", "Decrypt ", "Encrypt AccessDeniedException", "DescribeKey UnrecognizedClientException"}, codes); diff != "" {
		t.Errorf("log (-want +got):\n%s", diff)
	}
	l.ResetCalls()
	if n := l.Calls(""); n != 0 {
		t.Errorf("%d calls after a reset", n)
	}
}

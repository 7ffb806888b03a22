package awskmstest_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/kube-kek/kube-kek/kek/awskms/awskmstest"
)

const roleARN = "arn:aws:iam::111122223333:role/kek"

func (l lab) sts(p awskmstest.Principal) *sts.Client {
	return sts.New(sts.Options{BaseEndpoint: &l.url, Region: region, Retryer: aws.NopRetryer{}, Credentials: credentials(p)})
}

func TestCallerIdentityIsThePrincipalsARN(t *testing.T) {
	l := newLab(t)
	nobody := l.AddPrincipal(awskmstest.Principal{})
	out := must[*sts.GetCallerIdentityOutput](t)(l.sts(nobody).GetCallerIdentity(t.Context(), &sts.GetCallerIdentityInput{}))
	if got := aws.ToString(out.Arn); got != nobody.ARN {
		t.Errorf("got %s, want %s", got, nobody.ARN)
	}
	ended := l.AddPrincipal(awskmstest.Principal{SessionToken: "t", Expires: time.Now().Add(-time.Hour)})
	stranger, forger := l.root, l.root
	stranger.AccessKeyID, forger.SecretAccessKey = "AKIANOBODY", "guessed"
	for want, p := range map[string]awskmstest.Principal{
		"ExpiredToken": ended, "InvalidClientTokenId": stranger, "SignatureDoesNotMatch": forger,
	} {
		_, err := l.sts(p).GetCallerIdentity(t.Context(), &sts.GetCallerIdentityInput{})
		if got := codeOf(t, err); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func TestARoleIsAssumedByThoseItTrusts(t *testing.T) {
	l := newLab(t)
	key := l.CreateKey()
	l.AddRole(awskmstest.Role{ARN: roleARN, Allow: []string{"kms:DescribeKey"}, Trusts: []string{l.root.ARN}, ExternalID: "agreed"})
	in := &sts.AssumeRoleInput{RoleArn: aws.String(roleARN), RoleSessionName: aws.String("node-1"), ExternalId: aws.String("agreed")}
	out := must[*sts.AssumeRoleOutput](t)(l.sts(l.root).AssumeRole(t.Context(), in))
	if got, want := aws.ToString(out.AssumedRoleUser.Arn), "arn:aws:sts::111122223333:assumed-role/kek/node-1"; got != want {
		t.Errorf("assumed %s, want %s", got, want)
	}
	session := awskmstest.Principal{
		AccessKeyID: *out.Credentials.AccessKeyId, SecretAccessKey: *out.Credentials.SecretAccessKey, SessionToken: *out.Credentials.SessionToken,
	}
	must[*kms.DescribeKeyOutput](t)(l.client(session).DescribeKey(t.Context(), &kms.DescribeKeyInput{KeyId: &key}))
	if _, err := l.client(session).DisableKey(t.Context(), &kms.DisableKeyInput{KeyId: &key}); codeOf(t, err) != "AccessDeniedException" {
		t.Errorf("what the role does not permit: %v", err)
	}

	denied := func(p awskmstest.Principal, in *sts.AssumeRoleInput) {
		t.Helper()
		if _, err := l.sts(p).AssumeRole(t.Context(), in); codeOf(t, err) != "AccessDenied" {
			t.Errorf("got %v", err)
		}
	}
	denied(l.AddPrincipal(awskmstest.Principal{Allow: []string{"*"}}), in)
	denied(l.root, &sts.AssumeRoleInput{RoleArn: in.RoleArn, RoleSessionName: in.RoleSessionName})
	denied(l.root, &sts.AssumeRoleInput{RoleArn: aws.String(roleARN + "x"), RoleSessionName: in.RoleSessionName, ExternalId: in.ExternalId})
	_, err := l.sts(l.root).AssumeRole(t.Context(), &sts.AssumeRoleInput{RoleArn: in.RoleArn, RoleSessionName: in.RoleSessionName, ExternalId: in.ExternalId, DurationSeconds: aws.Int32(60)})
	if got := codeOf(t, err); got != "ValidationError" {
		t.Errorf("a session of a minute: %s", got)
	}
}

// token signs claims as a JWT with key.
func token(t *testing.T, key crypto.Signer, claims map[string]any) string {
	algorithm := "RS256"
	if _, ok := key.(*ecdsa.PrivateKey); ok {
		algorithm = "ES256"
	}
	part := func(v any) string {
		return base64.RawURLEncoding.EncodeToString(must[[]byte](t)(json.Marshal(v)))
	}
	signed := part(map[string]string{"alg": algorithm, "typ": "JWT"}) + "." + part(claims)
	sum := sha256.Sum256([]byte(signed))
	var signature []byte
	switch key := key.(type) {
	case *rsa.PrivateKey:
		signature = must[[]byte](t)(key.Sign(rand.Reader, sum[:], crypto.SHA256))
	case *ecdsa.PrivateKey:
		r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
		if err != nil {
			t.Fatal(err)
		}
		signature = append(fixed(r), fixed(s)...)
	}
	return signed + "." + base64.RawURLEncoding.EncodeToString(signature)
}

func fixed(n *big.Int) []byte { return n.FillBytes(make([]byte, 32)) }

func TestAWebIdentityIsVerified(t *testing.T) {
	rsaKey := must[*rsa.PrivateKey](t)(rsa.GenerateKey(rand.Reader, 2048))
	ecKey := must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	other := must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	now := time.Now().Unix()
	good := map[string]any{"iss": "https://oidc.test", "aud": []string{"sts.amazonaws.com"}, "sub": "system:serviceaccount:kube-system:kek", "exp": now + 600, "nbf": now - 600}
	with := func(name string, value any) map[string]any {
		claims := map[string]any{name: value}
		for k, v := range good {
			if k != name {
				claims[k] = v
			}
		}
		return claims
	}
	for _, c := range []struct {
		name  string
		key   crypto.PublicKey
		token string
		want  string
	}{
		{"a token signed with ES256", &ecKey.PublicKey, token(t, ecKey, good), ""},
		{"a token signed with RS256", &rsaKey.PublicKey, token(t, rsaKey, good), ""},
		{"one audience that is no list", &ecKey.PublicKey, token(t, ecKey, with("aud", "sts.amazonaws.com")), ""},
		{"a forged token", &ecKey.PublicKey, token(t, other, good), "InvalidIdentityToken"},
		{"an algorithm that is not the key's", &rsaKey.PublicKey, token(t, ecKey, good), "InvalidIdentityToken"},
		{"an expired token", &ecKey.PublicKey, token(t, ecKey, with("exp", now-1)), "ExpiredTokenException"},
		{"a token for later", &ecKey.PublicKey, token(t, ecKey, with("nbf", now+60)), "InvalidIdentityToken"},
		{"another audience", &ecKey.PublicKey, token(t, ecKey, with("aud", "vault")), "InvalidIdentityToken"},
		{"another issuer", &ecKey.PublicKey, token(t, ecKey, with("iss", "https://evil.test")), "InvalidIdentityToken"},
		{"another subject", &ecKey.PublicKey, token(t, ecKey, with("sub", "someone")), "AccessDenied"},
		{"no token at all", &ecKey.PublicKey, "abc", "InvalidIdentityToken"},
		{"an unsigned token", &ecKey.PublicKey, strings.Join(strings.Split(token(t, ecKey, good), ".")[:2], ".") + ".", "InvalidIdentityToken"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLab(t)
			l.AddRole(awskmstest.Role{ARN: roleARN, WebIdentity: &awskmstest.Issuer{
				URL: "https://oidc.test", Audience: "sts.amazonaws.com", Subject: "system:serviceaccount:kube-system:kek", Key: c.key,
			}})
			_, err := l.sts(awskmstest.Principal{}).AssumeRoleWithWebIdentity(t.Context(), &sts.AssumeRoleWithWebIdentityInput{
				RoleArn: aws.String(roleARN), RoleSessionName: aws.String("s"), WebIdentityToken: &c.token,
			})
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

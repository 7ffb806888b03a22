package awskms_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kube-kek/kube-kek/kek"
	"github.com/kube-kek/kube-kek/kek/awskms"
	"github.com/kube-kek/kube-kek/kek/awskms/awskmstest"
)

const roleARN = "arn:aws:iam::111122223333:role/kek"

func TestTheIdentityIsTheCallers(t *testing.T) {
	l := newLab(t)
	p := l.provider(t, awskms.Config{})
	if got, err := p.Identity(t.Context()); err != nil || got != l.me.ARN {
		t.Errorf("got %s, %v, want %s", got, err, l.me.ARN)
	}
	l.RemovePrincipal(l.me.AccessKeyID)
	if _, err := p.Identity(t.Context()); kek.KindOf(err) != kek.Unauthenticated || !strings.Contains(err.Error(), "InvalidClientTokenId") {
		t.Errorf("an unknown caller: %v", err)
	}
}

func TestStaticCredentialsAreNoted(t *testing.T) {
	l := newLab(t)
	note := func() string {
		t.Helper()
		p := l.provider(t, awskms.Config{})
		if err := describe(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		return strings.Join(p.Facts().Notes, " ")
	}
	if got := note(); !strings.Contains(got, "static access key") {
		t.Errorf("a key in the environment: %q", got)
	}
	l.useEnv(t, l.AddPrincipal(awskmstest.Principal{SessionToken: "t", Allow: everything}))
	if got := note(); !strings.Contains(got, "nobody renews") {
		t.Errorf("a session in the environment: %q", got)
	}
	l.useEnv(t, awskmstest.Principal{})
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", writeFile(t, filepath.Join(t.TempDir(), "credentials"),
		"[default]\naws_access_key_id = "+l.me.AccessKeyID+"\naws_secret_access_key = "+l.me.SecretAccessKey+"\n"))
	if got := note(); !strings.Contains(got, "static access key") {
		t.Errorf("a key in a file: %q", got)
	}
}

func TestWithoutCredentialsTheHomeIsUnauthenticated(t *testing.T) {
	l := newLab(t)
	l.useEnv(t, awskmstest.Principal{})
	err := describe(t.Context(), l.provider(t, awskms.Config{}))
	if kek.KindOf(err) != kek.Unauthenticated || !strings.Contains(err.Error(), "getting AWS credentials") || l.Calls("") != 0 {
		t.Errorf("credentials from nowhere: %v", err)
	}
	t.Setenv("AWS_EC2_METADATA_DISABLED", "false")
	gone := httptest.NewServer(nil)
	gone.Close()
	t.Setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", gone.URL)
	err = describe(t.Context(), l.provider(t, awskms.Config{}))
	if kek.KindOf(err) != kek.Unauthenticated || !strings.Contains(err.Error(), "from the instance metadata service: no answer: dial tcp") {
		t.Errorf("a machine without a metadata service: %v", err)
	}
}

func TestARoleIsAssumedAndRenewed(t *testing.T) {
	l := newLab(t)
	l.me = l.AddPrincipal(awskmstest.Principal{Allow: []string{"sts:AssumeRole"}})
	l.useEnv(t, l.me)
	// The session ends within the minute before which it is renewed, so that each
	// call needs a new one.
	role := awskmstest.Role{ARN: roleARN, Allow: everything, Trusts: []string{l.me.ARN}, ExternalID: "agreed", Lifetime: 30 * time.Second}
	l.AddRole(role)
	p := l.provider(t, awskms.Config{RoleARN: roleARN, ExternalID: "agreed"})
	for range 2 {
		if _, err := p.Wrap(t.Context(), []byte("key")); err != nil {
			t.Fatal(err)
		}
	}
	if n := l.CallsBy("arn:aws:sts::111122223333:assumed-role/kek/kube-kek", "Encrypt"); n != 2 {
		t.Errorf("%d calls of Encrypt under the role, want 2", n)
	}
	if n := l.Calls("AssumeRole"); n < 2 {
		t.Errorf("the role was assumed %d times: an ending session was used", n)
	}
	if got, err := p.Identity(t.Context()); err != nil || got != "arn:aws:sts::111122223333:assumed-role/kek/kube-kek" {
		t.Errorf("identity %s, %v", got, err)
	}

	role.ExternalID = "another"
	l.AddRole(role)
	err := describe(t.Context(), p)
	if kek.KindOf(err) != kek.Unauthenticated || !strings.Contains(err.Error(), "getting AWS credentials: AccessDenied: User: "+l.me.ARN) {
		t.Errorf("a role that may not be assumed: %v", err)
	}
	l.SetFault(awskmstest.Fault{Actions: []string{"AssumeRole"}, Code: "ServiceUnavailable", Status: 503})
	if err := describe(t.Context(), p); kek.KindOf(err) != kek.Unavailable {
		t.Errorf("while STS is down: %v", err)
	}
}

// oidc is an issuer of web identity tokens.
type oidc struct{ key *ecdsa.PrivateKey }

func newOIDC(t *testing.T) oidc {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return oidc{key}
}

func (o oidc) token(t *testing.T, expires time.Time) string {
	part := func(v map[string]any) string {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return base64.RawURLEncoding.EncodeToString(b)
	}
	signed := part(map[string]any{"alg": "ES256"}) + "." +
		part(map[string]any{"iss": "https://oidc.test", "aud": "sts.amazonaws.com", "sub": "node", "exp": expires.Unix()})
	sum := sha256.Sum256([]byte(signed))
	r, s, err := ecdsa.Sign(rand.Reader, o.key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	signature := append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
	return signed + "." + base64.RawURLEncoding.EncodeToString(signature)
}

func TestAWebIdentityIsReadFromItsFileEachTime(t *testing.T) {
	l := newLab(t)
	issuer := newOIDC(t)
	l.AddRole(awskmstest.Role{ARN: roleARN, Allow: everything, Lifetime: 30 * time.Second, WebIdentity: &awskmstest.Issuer{
		URL: "https://oidc.test", Audience: "sts.amazonaws.com", Subject: "node", Key: &issuer.key.PublicKey,
	}})
	l.useEnv(t, awskmstest.Principal{})
	path := filepath.Join(t.TempDir(), "token")
	t.Setenv("AWS_WEB_IDENTITY_TOKEN_FILE", path)
	t.Setenv("AWS_ROLE_ARN", roleARN)
	t.Setenv("AWS_ROLE_SESSION_NAME", "node-1")
	p := l.provider(t, awskms.Config{})

	if err := describe(t.Context(), p); kek.KindOf(err) != kek.Unauthenticated || !strings.Contains(err.Error(), path) {
		t.Errorf("without the token's file: %v", err)
	}
	expired := issuer.token(t, time.Now().Add(-time.Hour))
	writeFile(t, path, expired)
	err := describe(t.Context(), p)
	if kek.KindOf(err) != kek.Unauthenticated || !strings.Contains(err.Error(), "ExpiredTokenException") || strings.Contains(err.Error(), expired) {
		t.Errorf("an expired token: %v", err)
	}
	writeFile(t, path, issuer.token(t, time.Now().Add(time.Hour)))
	if err := describe(t.Context(), p); err != nil {
		t.Errorf("a good token: %v", err)
	}
	if notes := strings.Join(p.Facts().Notes, " "); notes != "" {
		t.Errorf("notes: %q", notes)
	}
	if got, err := p.Identity(t.Context()); err != nil || got != "arn:aws:sts::111122223333:assumed-role/kek/node-1" {
		t.Errorf("identity %s, %v", got, err)
	}
}

func TestAnInstanceRoleIsRenewed(t *testing.T) {
	l := newLab(t)
	l.useEnv(t, awskmstest.Principal{})
	t.Setenv("AWS_EC2_METADATA_DISABLED", "false")
	var issued atomic.Int32
	mux := http.NewServeMux()
	mux.HandleFunc("PUT /latest/api/token", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Aws-Ec2-Metadata-Token-Ttl-Seconds", "21600")
		w.Write([]byte("imds-token"))
	})
	mux.HandleFunc("GET /latest/meta-data/iam/security-credentials/{role...}", func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Header.Get("X-Aws-Ec2-Metadata-Token") != "imds-token": // IMDSv2 only
			w.WriteHeader(http.StatusUnauthorized)
		case r.PathValue("role") == "":
			w.Write([]byte("node-role"))
		default:
			issued.Add(1)
			session := l.AddPrincipal(awskmstest.Principal{
				SessionToken: "t", Allow: everything,
				ARN: "arn:aws:sts::111122223333:assumed-role/node-role/i-1",
			})
			// They are over for the SDK, so that each call needs new ones.
			ended := time.Now().Add(-time.Second)
			json.NewEncoder(w).Encode(map[string]string{
				"Code": "Success", "Type": "AWS-HMAC", "AccessKeyId": session.AccessKeyID, "SecretAccessKey": session.SecretAccessKey,
				"Token": session.SessionToken, "Expiration": ended.UTC().Format(time.RFC3339),
			})
		}
	})
	imds := httptest.NewServer(mux)
	t.Cleanup(imds.Close)
	t.Setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", imds.URL)
	p := l.provider(t, awskms.Config{})
	for range 2 {
		if _, err := p.Wrap(t.Context(), []byte("key")); err != nil {
			t.Fatal(err)
		}
	}
	if n := l.CallsBy("arn:aws:sts::111122223333:assumed-role/node-role/i-1", "Encrypt"); n != 2 {
		t.Errorf("%d calls of Encrypt under the instance role, want 2", n)
	}
	if issued.Load() < 2 {
		t.Error("credentials that had ended were not renewed")
	}
}

func TestACABundleSaysWhomToTrust(t *testing.T) {
	l := newLab(t)
	tls := l.StartTLS()
	t.Cleanup(tls.Close)
	bundle := writeFile(t, filepath.Join(t.TempDir(), "ca.pem"),
		string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: tls.Certificate().Raw})))
	err := describe(t.Context(), l.provider(t, awskms.Config{Endpoint: tls.URL}))
	if kek.KindOf(err) != kek.Unavailable || !strings.Contains(err.Error(), "certificate signed by unknown authority") {
		t.Errorf("without the bundle: %v", err)
	}
	if err := describe(t.Context(), l.provider(t, awskms.Config{Endpoint: tls.URL, CABundle: bundle})); err != nil {
		t.Errorf("with the bundle: %v", err)
	}
	t.Setenv("AWS_CA_BUNDLE", bundle)
	t.Setenv("AWS_ENDPOINT_URL_KMS", tls.URL)
	if err := describe(t.Context(), l.provider(t, awskms.Config{})); err != nil {
		t.Errorf("with AWS_CA_BUNDLE and AWS_ENDPOINT_URL_KMS: %v", err)
	}
	t.Setenv("AWS_ENDPOINT_URL_KMS", "http://kms.internal")
	if _, err := awskms.New(t.Context(), awskms.Config{Key: l.key}); kek.KindOf(err) != kek.Invalid {
		t.Errorf("an endpoint in clear from the environment: %v", err)
	}
}

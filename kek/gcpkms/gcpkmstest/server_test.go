package gcpkmstest_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	kms "cloud.google.com/go/kms/apiv1"
	"cloud.google.com/go/kms/apiv1/kmspb"
	"github.com/google/go-cmp/cmp"
	"github.com/googleapis/gax-go/v2/apierror"
	"github.com/kube-kek/kube-kek/kek/gcpkms/gcpkmstest"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const root = "root@p.iam.gserviceaccount.com"

type lab struct {
	*gcpkmstest.Server
	*testing.T
	api *kms.KeyManagementClient
}

func newLab(t *testing.T) lab {
	s, err := gcpkmstest.Start(gcpkmstest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	s.SetPrincipal(gcpkmstest.Principal{Name: root, Allow: []string{"*"}})
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(s.CA())
	conn, err := grpc.NewClient(s.Address(), grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12})))
	if err != nil {
		t.Fatal(err)
	}
	client, err := kms.NewKeyManagementClient(t.Context(), option.WithGRPCConn(conn))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	client.CallOptions = &kms.KeyManagementCallOptions{}
	return lab{s, t, client}
}

func bearer(ctx context.Context, token string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
}

func (l lab) as(name string) context.Context {
	token, _ := l.Token(name)
	return bearer(l.Context(), token)
}

func (l lab) encrypt(ctx context.Context, name string, change ...func(*kmspb.EncryptRequest)) (*kmspb.EncryptResponse, error) {
	req := &kmspb.EncryptRequest{Name: name, Plaintext: []byte("key"), AdditionalAuthenticatedData: []byte("aad")}
	for _, f := range change {
		f(req)
	}
	return l.api.Encrypt(ctx, req)
}

func (l lab) mustEncrypt(name string) *kmspb.EncryptResponse {
	l.Helper()
	out, err := l.encrypt(l.as(root), name)
	if err != nil {
		l.Fatal(err)
	}
	return out
}

func (l lab) decrypt(name string, ciphertext []byte, change ...func(*kmspb.DecryptRequest)) (*kmspb.DecryptResponse, error) {
	req := &kmspb.DecryptRequest{Name: name, Ciphertext: ciphertext, AdditionalAuthenticatedData: []byte("aad")}
	for _, f := range change {
		f(req)
	}
	return l.api.Decrypt(l.as(root), req)
}

func crc(b []byte) *wrapperspb.Int64Value {
	return wrapperspb.Int64(int64(crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))))
}

func want(t *testing.T, what string, err error, code codes.Code, words string) {
	t.Helper()
	if status.Code(err) != code || !strings.Contains(fmt.Sprint(err), words) {
		t.Errorf("%s: %v, want %v that says %q", what, err, code, words)
	}
}

func TestWhatWasEncryptedDecryptsUnderTheSameDataAndKeyOnly(t *testing.T) {
	l := newLab(t)
	key, other := l.CreateKey(), l.CreateKey()
	out := l.mustEncrypt(key)
	if out.Name != key+"/cryptoKeyVersions/1" || out.CiphertextCrc32C.GetValue() != crc(out.Ciphertext).Value || out.VerifiedPlaintextCrc32C || len(out.Ciphertext) > 100 {
		t.Errorf("Encrypt: %v", out)
	}
	l.Rotate(key)
	back, err := l.decrypt(key, out.Ciphertext)
	if err != nil || string(back.Plaintext) != "key" || back.PlaintextCrc32C.GetValue() != crc([]byte("key")).Value || back.UsedPrimary {
		t.Errorf("Decrypt: %v, %v", back, err)
	}
	if back, err := l.decrypt(key, l.mustEncrypt(key).Ciphertext); err != nil || !back.UsedPrimary {
		t.Errorf("Decrypt of the primary version's: %v, %v", back, err)
	}
	_, err = l.decrypt(key, out.Ciphertext, func(r *kmspb.DecryptRequest) { r.AdditionalAuthenticatedData = []byte("other") })
	want(t, "other data", err, codes.InvalidArgument, "the ciphertext is invalid")
	_, err = l.decrypt(other, out.Ciphertext)
	want(t, "another key", err, codes.InvalidArgument, "verify that 'name' refers to the correct CryptoKey")
	_, err = l.decrypt(key, nil)
	want(t, "no ciphertext", err, codes.InvalidArgument, "the ciphertext is invalid")
	_, err = l.decrypt(out.Name, out.Ciphertext)
	want(t, "a version's name", err, codes.InvalidArgument, "takes the name of a CryptoKey")
	_, err = l.decrypt(key+"0", out.Ciphertext)
	want(t, "no such key", err, codes.NotFound, "not found")
	_, err = l.encrypt(l.as(root), key+"/cryptoKeyVersions/9")
	want(t, "no such version", err, codes.NotFound, "cryptoKeyVersions/9 not found")
	_, err = l.encrypt(l.as(root), key, func(r *kmspb.EncryptRequest) { r.Plaintext = make([]byte, 64<<10+1) })
	want(t, "too much", err, codes.InvalidArgument, "no larger than")
	_, err = l.encrypt(l.as(root), l.CreateKeyOf(kmspb.CryptoKey_MAC))
	want(t, "another purpose", err, codes.FailedPrecondition, "its purpose is MAC")
	for i := range out.Ciphertext {
		damaged := append([]byte(nil), out.Ciphertext...)
		damaged[i] ^= 1
		_, err := l.decrypt(key, damaged)
		want(t, fmt.Sprintf("byte %d flipped", i), err, codes.InvalidArgument, "Decryption failed")
	}
}

func TestWrongChecksumsAreRefused(t *testing.T) {
	l := newLab(t)
	key := l.CreateKey()
	out, err := l.encrypt(l.as(root), key, func(r *kmspb.EncryptRequest) {
		r.PlaintextCrc32C, r.AdditionalAuthenticatedDataCrc32C = crc(r.Plaintext), crc(r.AdditionalAuthenticatedData)
	})
	if err != nil || !out.VerifiedPlaintextCrc32C || !out.VerifiedAdditionalAuthenticatedDataCrc32C {
		t.Fatalf("good checksums: %v, %v", out, err)
	}
	_, err = l.encrypt(l.as(root), key, func(r *kmspb.EncryptRequest) { r.PlaintextCrc32C = crc(nil) })
	want(t, "of a plaintext", err, codes.InvalidArgument, "plaintext_crc32c did not match")
	_, err = l.encrypt(l.as(root), key, func(r *kmspb.EncryptRequest) { r.AdditionalAuthenticatedDataCrc32C = crc(nil) })
	want(t, "of additional data", err, codes.InvalidArgument, "additional_authenticated_data_crc32c did not match")
	_, err = l.decrypt(key, out.Ciphertext, func(r *kmspb.DecryptRequest) { r.CiphertextCrc32C = crc(nil) })
	want(t, "of a ciphertext", err, codes.InvalidArgument, "ciphertext_crc32c did not match")
	_, err = l.decrypt(key, out.Ciphertext, func(r *kmspb.DecryptRequest) { r.AdditionalAuthenticatedDataCrc32C = crc(nil) })
	want(t, "of additional data to decrypt", err, codes.InvalidArgument, "additional_authenticated_data_crc32c did not match")
}

func TestOnlyEnabledVersionsAreUsed(t *testing.T) {
	l := newLab(t)
	key := l.CreateKey()
	out := l.mustEncrypt(key)
	for state, violation := range map[kmspb.CryptoKeyVersion_CryptoKeyVersionState]string{
		kmspb.CryptoKeyVersion_DISABLED:           "KEY_DISABLED",
		kmspb.CryptoKeyVersion_DESTROY_SCHEDULED:  "KEY_DESTROYED",
		kmspb.CryptoKeyVersion_DESTROYED:          "KEY_DESTROYED",
		kmspb.CryptoKeyVersion_PENDING_GENERATION: "KEY_PENDING_GENERATION",
	} {
		l.SetState(key, "1", state)
		_, encryptErr := l.encrypt(l.as(root), key)
		_, decryptErr := l.decrypt(key, out.Ciphertext)
		for _, err := range []error{encryptErr, decryptErr} {
			want(t, state.String(), err, codes.FailedPrecondition, "cryptoKeyVersions/1 is not enabled, current state is: "+state.String())
			api, ok := apierror.FromError(err)
			if !ok || api.Details().PreconditionFailure.GetViolations()[0].Type != violation {
				t.Errorf("%s: details %v, want %s", state, err, violation)
			}
		}
		about, err := l.api.GetCryptoKey(l.as(root), &kmspb.GetCryptoKeyRequest{Name: key})
		if err != nil || about.Primary.State != state || (about.Primary.DestroyTime != nil) != (state == kmspb.CryptoKeyVersion_DESTROY_SCHEDULED) {
			t.Errorf("%s: described as %v, %v", state, about, err)
		}
	}
	l.Enable(key)
	if back, err := l.decrypt(key, out.Ciphertext); err != nil || string(back.Plaintext) != "key" {
		t.Errorf("enabled again: %v", err)
	}
	l.SetPrimary(key, "")
	_, err := l.encrypt(l.as(root), key)
	want(t, "no primary version", err, codes.FailedPrecondition, "may lack a primary version")
	if _, err := l.encrypt(l.as(root), key+"/cryptoKeyVersions/1"); err != nil {
		t.Errorf("a version that is named, of a key without a primary one: %v", err)
	}
}

func TestThePrimaryVersionMayMoveLate(t *testing.T) {
	l := newLab(t)
	key := l.CreateKey()
	for lag, versions := range map[gcpkmstest.Lag][2]string{
		{}:                                  {"2", "2"},
		{GetCryptoKey: true}:                {"1", "2"},
		{Encrypt: true}:                     {"2", "1"},
		{GetCryptoKey: true, Encrypt: true}: {"1", "1"},
	} {
		key := l.CreateKey()
		l.SetLag(key, lag)
		l.Rotate(key)
		about, err := l.api.GetCryptoKey(l.as(root), &kmspb.GetCryptoKeyRequest{Name: key})
		if err != nil {
			t.Fatal(err)
		}
		got := [2]string{about.Primary.Name, l.mustEncrypt(key).Name}
		if want := [2]string{key + "/cryptoKeyVersions/" + versions[0], key + "/cryptoKeyVersions/" + versions[1]}; got != want {
			t.Errorf("%+v: %v, want %v", lag, got, want)
		}
		if out := l.mustEncrypt(key + "/cryptoKeyVersions/2"); out.Name != key+"/cryptoKeyVersions/2" {
			t.Errorf("%+v: a version that was named: %s", lag, out.Name)
		}
	}
	if n := l.AddVersion(key); n != "2" || l.mustEncrypt(key).Name != key+"/cryptoKeyVersions/1" {
		t.Errorf("a version that was added is primary")
	}
}

func TestCallersAreAuthenticatedAndPermitted(t *testing.T) {
	l := newLab(t)
	key := l.CreateKey()
	get := func(ctx context.Context) error {
		_, err := l.api.GetCryptoKey(ctx, &kmspb.GetCryptoKeyRequest{Name: key})
		return err
	}
	want(t, "no token", get(t.Context()), codes.Unauthenticated, "missing required authentication credential")
	want(t, "an unknown token", get(bearer(t.Context(), "ya29.x")), codes.Unauthenticated, "invalid authentication credentials")
	want(t, "a token of nobody", get(l.as("nobody")), codes.Unauthenticated, "invalid authentication credentials")
	want(t, "a good token", get(l.as(root)), codes.OK, "")
	old := l.as(root)
	l.RevokeTokens()
	want(t, "a revoked token", get(old), codes.Unauthenticated, "invalid authentication credentials")
	l.SetTokenLifetime(time.Nanosecond)
	want(t, "a token that ended", get(l.as(root)), codes.Unauthenticated, "invalid authentication credentials")
	l.SetTokenLifetime(time.Hour)

	l.SetPrincipal(gcpkmstest.Principal{Name: "reader", Allow: []string{"cloudkms.cryptoKeys.get"}})
	want(t, "a reader reads", get(l.as("reader")), codes.OK, "")
	_, err := l.encrypt(l.as("reader"), key)
	want(t, "a reader encrypts", err, codes.PermissionDenied, "Permission 'cloudkms.cryptoKeyVersions.useToEncrypt' denied on resource '"+key+"' (or it may not exist)")
	_, err = l.api.Decrypt(l.as("reader"), &kmspb.DecryptRequest{Name: key + "0"})
	want(t, "a reader decrypts with no key", err, codes.PermissionDenied, "useToDecrypt")
	l.SetPrincipal(gcpkmstest.Principal{Name: "reader", Allow: []string{"cloudkms.*"}, Revoked: true})
	want(t, "a revoked account", get(l.as("reader")), codes.Unauthenticated, "invalid authentication credentials")
	if n := l.CallsBy("reader", "GetCryptoKey"); n != 1 {
		t.Errorf("%d calls by the reader", n)
	}
}

func TestKeyFilesSignTokens(t *testing.T) {
	l := newLab(t)
	key := l.CreateKey()
	var file struct {
		Email string `json:"client_email"`
		Key   string `json:"private_key"`
	}
	if err := json.Unmarshal(l.KeyFile(root), &file); err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode([]byte(file.Key))
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	good := map[string]any{"iss": root, "sub": root, "scope": "https://www.googleapis.com/auth/cloud-platform", "exp": time.Now().Add(time.Hour).Unix()}
	sign := func(key *rsa.PrivateKey, change map[string]any) string {
		claims := map[string]any{}
		for _, m := range []map[string]any{good, change} {
			for k, v := range m {
				claims[k] = v
			}
		}
		signed := part(t, map[string]any{"alg": "RS256"}) + "." + part(t, claims)
		sum := sha256.Sum256([]byte(signed))
		signature, err := rsa.SignPKCS1v15(nil, key, crypto.SHA256, sum[:])
		if err != nil {
			t.Fatal(err)
		}
		return signed + "." + base64.RawURLEncoding.EncodeToString(signature)
	}
	mine := parsed.(*rsa.PrivateKey)
	for name, c := range map[string]struct {
		token string
		want  codes.Code
	}{
		"a good one":        {sign(mine, nil), codes.OK},
		"another's key":     {sign(stranger, nil), codes.Unauthenticated},
		"another subject":   {sign(mine, map[string]any{"sub": "x"}), codes.Unauthenticated},
		"an unknown issuer": {sign(mine, map[string]any{"iss": "x", "sub": "x"}), codes.Unauthenticated},
		"no scope":          {sign(mine, map[string]any{"scope": ""}), codes.Unauthenticated},
		"one that ended":    {sign(mine, map[string]any{"exp": time.Now().Add(-time.Second).Unix()}), codes.Unauthenticated},
		"one cut short":     {sign(mine, nil)[:100], codes.Unauthenticated},
		"no JWT":            {"a.b.c", codes.Unauthenticated},
	} {
		_, err := l.api.GetCryptoKey(bearer(t.Context(), c.token), &kmspb.GetCryptoKeyRequest{Name: key})
		want(t, name, err, c.want, "")
	}
}

func part(t *testing.T, v map[string]any) string {
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

func TestFaultsBefallTheCallsThatTheyName(t *testing.T) {
	l := newLab(t)
	key := l.CreateKey()
	get := func() error {
		_, err := l.api.GetCryptoKey(l.as(root), &kmspb.GetCryptoKeyRequest{Name: key})
		return err
	}
	l.SetFault(gcpkmstest.Fault{Methods: []string{"Encrypt"}, Code: codes.Internal}, gcpkmstest.Fault{Times: 2, Code: codes.ResourceExhausted, RetryDelay: time.Second})
	_, err := l.encrypt(l.as(root), key)
	want(t, "Encrypt", err, codes.Internal, "")
	for range 2 {
		err := get()
		want(t, "the first two", err, codes.ResourceExhausted, "")
		if api, _ := apierror.FromError(err); api.Details().RetryInfo.GetRetryDelay().AsDuration() != time.Second {
			t.Errorf("no retry delay: %v", err)
		}
	}
	want(t, "the third", get(), codes.OK, "")
	l.SetFault(gcpkmstest.Fault{Principal: "another", Code: codes.Internal})
	want(t, "another's fault", get(), codes.OK, "")
	l.SetFault(gcpkmstest.Fault{Drop: true})
	want(t, "a cut connection", get(), codes.Unavailable, "")
	l.SetFault(gcpkmstest.Fault{Latency: time.Millisecond})
	want(t, "a slow call", get(), codes.OK, "")

	l.SetFault(gcpkmstest.Fault{Hang: true})
	ctx, cancel := context.WithTimeout(l.as(root), 20*time.Millisecond)
	defer cancel()
	_, err = l.api.GetCryptoKey(ctx, &kmspb.GetCryptoKeyRequest{Name: key})
	want(t, "a call that hangs", err, codes.DeadlineExceeded, "")
	ended := make(chan error)
	l.ResetCalls()
	go func() { ended <- get() }()
	for l.Calls("") == 0 {
		time.Sleep(time.Millisecond)
	}
	l.SetFault()
	want(t, "a call that is released", <-ended, codes.Unavailable, "the call hung")
	if diff := cmp.Diff([]gcpkmstest.Call{{Method: "GetCryptoKey", Principal: root, Name: key, Code: codes.Unavailable}}, l.Log()); diff != "" {
		t.Errorf("log (-want +got):\n%s", diff)
	}
}

func ask(t *testing.T, url string, header http.Header) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header = header
	return do(t, req)
}

func do(t *testing.T, req *http.Request) (int, string) {
	t.Helper()
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func TestTheMetadataServerDemandsItsHeader(t *testing.T) {
	l := newLab(t)
	server := httptest.NewServer(l.Metadata(root))
	defer server.Close()
	at := server.URL + "/computeMetadata/v1/instance/service-accounts/default/"
	flavor := http.Header{"Metadata-Flavor": {"Google"}}
	if status, _ := ask(t, at+"token", nil); status != http.StatusForbidden {
		t.Errorf("without the header: %d", status)
	}
	if status, _ := ask(t, at+"token", http.Header{"Metadata-Flavor": {"Google"}, "X-Forwarded-For": {"10.0.0.1"}}); status != http.StatusForbidden {
		t.Errorf("by way of a proxy: %d", status)
	}
	if status, email := ask(t, at+"email", flavor); status != http.StatusOK || email != root {
		t.Errorf("email: %d, %s", status, email)
	}
	status, body := ask(t, at+"token", flavor)
	var token struct {
		Value string `json:"access_token"`
		Ends  int    `json:"expires_in"`
	}
	if err := json.Unmarshal([]byte(body), &token); err != nil || status != http.StatusOK || token.Ends != 3600 {
		t.Fatalf("token: %d, %v", status, err)
	}
	_, err := l.api.GetCryptoKey(bearer(t.Context(), token.Value), &kmspb.GetCryptoKeyRequest{Name: l.CreateKey()})
	want(t, "its token", err, codes.OK, "")

	bare := httptest.NewServer(l.Metadata(""))
	defer bare.Close()
	if status, _ := ask(t, strings.Replace(at, server.URL, bare.URL, 1)+"token", flavor); status != http.StatusNotFound {
		t.Errorf("a machine without a service account: %d", status)
	}
}

func TestSTSVerifiesWhatItExchanges(t *testing.T) {
	l := newLab(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	f := gcpkmstest.Federation{Pool: "projects/1/locations/global/workloadIdentityPools/p", Provider: "o", Issuer: "https://oidc.test", Audience: "kms", Key: &key.PublicKey}
	server := httptest.NewServer(l.STS(f))
	defer server.Close()
	l.SetPrincipal(gcpkmstest.Principal{Name: f.Principal("node"), Allow: []string{"iam.*"}})

	token := func(key *ecdsa.PrivateKey, claim string, value any) string {
		claims := map[string]any{"iss": f.Issuer, "aud": []string{"x", "kms"}, "sub": "node", "exp": time.Now().Add(time.Hour).Unix()}
		claims[claim] = value
		signed := part(t, map[string]any{"alg": "ES256"}) + "." + part(t, claims)
		sum := sha256.Sum256([]byte(signed))
		r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
		if err != nil {
			t.Fatal(err)
		}
		return signed + "." + base64.RawURLEncoding.EncodeToString(append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...))
	}
	exchange := func(subject, name, value string) (int, string) {
		form := url.Values{
			"grant_type": {"urn:ietf:params:oauth:grant-type:token-exchange"}, "requested_token_type": {"urn:ietf:params:oauth:token-type:access_token"},
			"subject_token_type": {"urn:ietf:params:oauth:token-type:jwt"}, "scope": {"https://www.googleapis.com/auth/cloud-platform"},
			"audience": {f.Name()}, "subject_token": {subject},
		}
		form.Set(name, value)
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL+"/v1/token", strings.NewReader(form.Encode()))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		return do(t, req)
	}
	for _, c := range []struct{ what, token, name, value, want string }{
		{"a foreign signature", token(stranger, "", nil), "", "", "Error verifying the signature"},
		{"another issuer", token(key, "iss", "x"), "", "", "The issuer in ID Token"},
		{"another audience", token(key, "aud", "x"), "", "", "The audience in ID Token"},
		{"one that ended", token(key, "exp", 1), "", "", "stale"},
		{"one that begins later", token(key, "nbf", time.Now().Add(time.Hour).Unix()), "", "", "not yet valid"},
		{"no JWT", "x", "", "", "Unable to parse"},
		{"another pool", token(key, "", nil), "audience", "x", "invalid_target"},
		{"another grant", token(key, "", nil), "grant_type", "x", `grant_type`},
		{"another scope", token(key, "", nil), "scope", "x", "scope"},
	} {
		if status, body := exchange(c.token, c.name, c.value); status != http.StatusBadRequest || !strings.Contains(body, c.want) {
			t.Errorf("%s: %d, %s, want %q", c.what, status, body, c.want)
		}
	}
	status, body := exchange(token(key, "", nil), "", "")
	var got struct {
		Token string `json:"access_token"`
		Ends  int    `json:"expires_in"`
	}
	if err := json.Unmarshal([]byte(body), &got); err != nil || status != http.StatusOK || got.Ends != 3600 {
		t.Fatalf("a good token: %d, %v", status, err)
	}

	impersonate := func(token string) (int, string) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL+"/v1/projects/-/serviceAccounts/"+root+":generateAccessToken", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+token)
		return do(t, req)
	}
	if status, body := impersonate("x"); status != http.StatusUnauthorized || !strings.Contains(body, "UNAUTHENTICATED") {
		t.Errorf("nobody acts as another: %d, %s", status, body)
	}
	status, body = impersonate(got.Token)
	var as struct{ AccessToken string }
	if err := json.Unmarshal([]byte(body), &as); err != nil || status != http.StatusOK {
		t.Fatalf("a workload acts as another: %d, %v", status, err)
	}
	_, err = l.encrypt(bearer(t.Context(), as.AccessToken), l.CreateKey())
	want(t, "its token", err, codes.OK, "")
	l.SetPrincipal(gcpkmstest.Principal{Name: f.Principal("node")})
	if status, body := impersonate(got.Token); status != http.StatusForbidden || !strings.Contains(body, "iam.serviceAccounts.getAccessToken") {
		t.Errorf("a workload that may not: %d, %s", status, body)
	}
}

package gcpkms_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kube-kek/kube-kek/kek"
	"github.com/kube-kek/kube-kek/kek/gcpkms"
	"github.com/kube-kek/kube-kek/kek/gcpkms/gcpkmstest"
)

func identity(t *testing.T, p *gcpkms.Provider) string {
	t.Helper()
	who, err := p.Identity(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return who
}

func TestAMachinesServiceAccountIsUsedAndRenewed(t *testing.T) {
	l := newLab(t)
	// Tokens end within the seconds in which they are no longer used, so that
	// each call needs a new one.
	l.SetTokenLifetime(2 * time.Second)
	p := l.provider(t)
	for range 3 {
		if _, err := p.Wrap(t.Context(), []byte("key")); err != nil {
			t.Fatal(err)
		}
	}
	if n, all := l.CallsBy(me, "Encrypt"), l.Calls("MetadataToken"); n != 3 || all != 4 {
		t.Errorf("%d calls of Encrypt, want 3; %d tokens for 4 calls", n, all)
	}
	if who := identity(t, p); who != me {
		t.Errorf("identity %q", who)
	}
	if notes := p.Facts().Notes; len(notes) != 0 {
		t.Errorf("notes: %q", notes)
	}
}

func TestATokenIsKeptForItsTime(t *testing.T) {
	l := newLab(t)
	p := l.provider(t)
	for range 5 {
		if err := current(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
	if n := l.Calls("MetadataToken"); n != 1 {
		t.Errorf("%d tokens for 5 calls", n)
	}
}

func TestATokenThatKMSRefusesIsReplaced(t *testing.T) {
	l := newLab(t)
	p := l.provider(t)
	if err := current(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	l.RevokeTokens()
	if err := current(t.Context(), p); kek.KindOf(err) != kek.Unauthenticated {
		t.Errorf("a revoked token: %v", err)
	}
	if err := current(t.Context(), p); err != nil {
		t.Errorf("the next call: %v", err)
	}
}

// machine is a metadata server that may be out of order.
type machine struct {
	http.Handler
	status atomic.Int32
	hang   atomic.Bool
	asked  atomic.Int32
}

func (m *machine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	m.asked.Add(1)
	if m.hang.Load() {
		<-r.Context().Done()
	}
	if status := m.status.Load(); status != 0 {
		http.Error(w, "<html>secret</html>", int(status))
		return
	}
	m.Handler.ServeHTTP(w, r)
}

func newMachine(t *testing.T, inner http.Handler) *machine {
	m := &machine{Handler: inner}
	server := httptest.NewServer(m)
	t.Cleanup(server.Close)
	t.Setenv("GCE_METADATA_HOST", server.Listener.Addr().String())
	return m
}

func TestATokenLastsThroughAnOutageOfTheMetadataServer(t *testing.T) {
	l := newLab(t)
	m := newMachine(t, l.Metadata(me))
	l.SetTokenLifetime(time.Minute) // it is renewed in the background from the start
	p := l.provider(t)
	if err := current(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	m.hang.Store(true)
	for range 5 {
		if err := current(t.Context(), p); err != nil {
			t.Errorf("the token is still good: %v", err)
		}
	}
	if n := m.asked.Load(); n > 2 {
		t.Errorf("the metadata server was asked %d times, want once first and one at a time since", n)
	}
}

func TestWithoutATokenTheHomeIsUnauthenticatedOrUnavailable(t *testing.T) {
	l := newLab(t)
	m := newMachine(t, l.Metadata(me))
	for status, want := range map[int]struct {
		kind  kek.Kind
		words string
	}{
		403: {kek.Unauthenticated, "status 403"},
		404: {kek.Unauthenticated, "knows no service account of this machine"},
		429: {kek.Throttled, "status 429"},
		503: {kek.Unavailable, "status 503"},
	} {
		m.status.Store(int32(status))
		err := current(t.Context(), l.provider(t))
		if kek.KindOf(err) != want.kind || !strings.Contains(err.Error(), want.words) || !strings.Contains(err.Error(), "getting Google credentials: ") || strings.Contains(err.Error(), "secret") {
			t.Errorf("status %d: %v, want %v that says %q", status, err, want.kind, want.words)
		}
	}
	m.status.Store(0)
	m.hang.Store(true)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := current(ctx, l.provider(t)); kek.KindOf(err) != kek.Unavailable {
		t.Errorf("a metadata server that hangs: %v", err)
	}
	if err := current(t.Context(), l.providerAt(t, http.NotFoundHandler())); kek.KindOf(err) != kek.Unauthenticated {
		t.Errorf("another cloud's metadata server: %v", err)
	}
	empty := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Metadata-Flavor", "Google")
		w.Write([]byte("{}"))
	})
	if err := current(t.Context(), l.providerAt(t, empty)); kek.KindOf(err) != kek.Unauthenticated || !strings.Contains(err.Error(), "holds no token") {
		t.Errorf("an answer without a token: %v", err)
	}
	other := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.Write([]byte("{}")) })
	if err := current(t.Context(), l.providerAt(t, other)); kek.KindOf(err) != kek.Unauthenticated || !strings.Contains(err.Error(), "is not Google's metadata server") {
		t.Errorf("something else at the address: %v", err)
	}
	gone := httptest.NewServer(nil)
	gone.Close()
	t.Setenv("GCE_METADATA_HOST", gone.Listener.Addr().String())
	err := current(t.Context(), l.provider(t))
	if kek.KindOf(err) != kek.Unauthenticated || !strings.Contains(err.Error(), "no credentials file is named, and the metadata server at") {
		t.Errorf("a machine without a metadata server: %v", err)
	}
	if _, err := l.provider(t).Identity(t.Context()); kek.KindOf(err) != kek.Unauthenticated {
		t.Errorf("its identity: %v", err)
	}
	if n := l.Calls("GetCryptoKey"); n != 0 {
		t.Errorf("KMS was called %d times without a token", n)
	}
}

func (l *lab) providerAt(t *testing.T, metadata http.Handler) *gcpkms.Provider {
	newMachine(t, metadata)
	return l.provider(t)
}

func TestAKeyFileWorksIsNotedAndReadAgain(t *testing.T) {
	l := newLab(t)
	const owner = "kek@p.iam.gserviceaccount.com"
	l.SetPrincipal(gcpkmstest.Principal{Name: owner, Allow: mine})
	path := writeFile(t, "key.json", l.KeyFile(owner))
	t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere")
	p := l.provider(t, func(c *gcpkms.Config) { c.CredentialsFile = path })
	if err := current(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	if notes := strings.Join(p.Facts().Notes, " "); !strings.Contains(notes, "a service account's key in "+path) || !strings.Contains(notes, "workload identity federation") {
		t.Errorf("notes: %q", notes)
	}
	if who := identity(t, p); who != owner || l.CallsBy(owner, "GetCryptoKey") != 1 || l.Calls("MetadataToken") != 0 {
		t.Errorf("identity %q, %+v", who, l.Log())
	}

	// The key is replaced on disk, and the account too; the token is refused once.
	const next = "next@p.iam.gserviceaccount.com"
	l.SetPrincipal(gcpkmstest.Principal{Name: next, Allow: mine})
	if err := os.WriteFile(path, l.KeyFile(next), 0o600); err != nil {
		t.Fatal(err)
	}
	l.SetPrincipal(gcpkmstest.Principal{Name: owner, Revoked: true})
	if err := current(t.Context(), p); kek.KindOf(err) != kek.Unauthenticated {
		t.Errorf("a revoked account: %v", err)
	}
	if err := current(t.Context(), p); err != nil || l.CallsBy(next, "GetCryptoKey") != 1 {
		t.Errorf("with the new key: %v", err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := current(t.Context(), p); err != nil {
		t.Errorf("the token outlives the file: %v", err)
	}
}

// federation is a pool, its issuer, and the files of a workload.
type federation struct {
	gcpkmstest.Federation
	key    *ecdsa.PrivateKey
	token  string // the path of the subject token
	config string // the path of the external_account file
}

func newFederation(t *testing.T, l *lab, sts http.Handler, impersonates string) federation {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	f := federation{gcpkmstest.Federation{
		Pool: "projects/123/locations/global/workloadIdentityPools/clusters", Provider: "prod-eu-1",
		Issuer: "https://oidc.test", Key: &key.PublicKey,
	}, key, filepath.Join(t.TempDir(), "token"), ""}
	if sts == nil {
		sts = l.STS(f.Federation)
	}
	server := httptest.NewServer(sts)
	t.Cleanup(server.Close)
	config := map[string]any{
		"type": "external_account", "audience": f.Name(), "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
		"token_url": server.URL + "/v1/token", "credential_source": map[string]any{"file": f.token},
	}
	if impersonates != "" {
		config["service_account_impersonation_url"] = server.URL + "/v1/projects/-/serviceAccounts/" + impersonates + ":generateAccessToken"
	}
	raw, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	f.config = writeFile(t, "external.json", raw)
	if err := os.Chmod(f.config, 0o644); err != nil { // it holds no secret
		t.Fatal(err)
	}
	t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", f.config)
	return f
}

// write puts a subject token where the workload finds it, and returns it.
func (f federation) write(t *testing.T, subject string, expires time.Time) string {
	t.Helper()
	part := func(v map[string]any) string {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return base64.RawURLEncoding.EncodeToString(b)
	}
	signed := part(map[string]any{"alg": "ES256"}) + "." +
		part(map[string]any{"iss": f.Issuer, "aud": "https:" + f.Name(), "sub": subject, "exp": expires.Unix()})
	sum := sha256.Sum256([]byte(signed))
	r, s, err := ecdsa.Sign(rand.Reader, f.key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	signature := append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
	token := signed + "." + base64.RawURLEncoding.EncodeToString(signature)
	if err := os.WriteFile(f.token, []byte(token), 0o600); err != nil {
		t.Fatal(err)
	}
	return token
}

func TestAWorkloadIdentityIsExchangedAndReadAgainEachTime(t *testing.T) {
	l := newLab(t)
	f := newFederation(t, l, nil, "")
	l.SetPrincipal(gcpkmstest.Principal{Name: f.Principal("node"), Allow: mine})
	p := l.provider(t)

	if err := current(t.Context(), p); kek.KindOf(err) != kek.Unauthenticated || !strings.Contains(err.Error(), f.token) {
		t.Errorf("without the token's file: %v", err)
	}
	expired := f.write(t, "node", time.Now().Add(-time.Hour))
	err := current(t.Context(), p)
	if kek.KindOf(err) != kek.Unauthenticated || !strings.Contains(err.Error(), "invalid_grant: ID Token is stale to sign-in.") || strings.Contains(err.Error(), expired) {
		t.Errorf("an expired token: %v", err)
	}
	f.write(t, "node", time.Now().Add(time.Hour))
	l.SetTokenLifetime(2 * time.Second) // each call needs a new one
	for range 3 {
		if err := current(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
	if n := l.CallsBy(f.Principal("node"), "GetCryptoKey"); n != 3 {
		t.Errorf("%d calls by the workload, want 3", n)
	}
	if who, want := identity(t, p), "a workload identity of "+f.Pool+"/providers/prod-eu-1"; who != want {
		t.Errorf("identity %q, want %q", who, want)
	}
	if notes := p.Facts().Notes; len(notes) != 0 {
		t.Errorf("notes: %q", notes)
	}
	f.write(t, "stranger", time.Now().Add(time.Hour))
	if err := current(t.Context(), p); kek.KindOf(err) != kek.Unauthenticated {
		t.Errorf("a subject that KMS does not know: %v", err)
	}
	if err := os.WriteFile(f.token, []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := current(t.Context(), p); kek.KindOf(err) != kek.Unauthenticated || strings.Contains(err.Error(), "garbage") {
		t.Errorf("a token that is none: %v", err)
	}
}

func TestAWorkloadMayActAsAServiceAccount(t *testing.T) {
	l := newLab(t)
	f := newFederation(t, l, nil, me)
	f.write(t, "node", time.Now().Add(time.Hour))
	l.SetPrincipal(gcpkmstest.Principal{Name: f.Principal("node")})
	p := l.provider(t)
	if err := current(t.Context(), p); kek.KindOf(err) != kek.Unauthenticated || !strings.Contains(err.Error(), "iam.serviceAccounts.getAccessToken") {
		t.Errorf("a workload that may not: %v", err)
	}
	l.SetPrincipal(gcpkmstest.Principal{Name: f.Principal("node"), Allow: []string{"iam.serviceAccounts.getAccessToken"}})
	if err := current(t.Context(), p); err != nil || l.CallsBy(me, "GetCryptoKey") != 1 {
		t.Errorf("a workload that may: %v", err)
	}
	if who := identity(t, p); who != me {
		t.Errorf("identity %q", who)
	}
}

func TestAnSTSThatIsDownIsUnavailable(t *testing.T) {
	l := newLab(t)
	var status atomic.Int32
	f := newFederation(t, l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, "<html>secret "+r.FormValue("subject_token"), int(status.Load()))
	}), "")
	token := f.write(t, "node", time.Now().Add(time.Hour))
	for code, want := range map[int]kek.Kind{500: kek.Unavailable, 503: kek.Unavailable, 429: kek.Throttled, 302: kek.Unauthenticated, 403: kek.Unauthenticated} {
		status.Store(int32(code))
		err := current(t.Context(), l.provider(t))
		if kek.KindOf(err) != want || !strings.Contains(err.Error(), fmt.Sprintf("status %d: an answer that is not one of Google's", code)) {
			t.Errorf("status %d: %v, want %v", code, err, want)
		}
		if strings.Contains(err.Error(), token) || strings.Contains(err.Error(), "secret") {
			t.Errorf("status %d: the error quotes the page: %v", code, err)
		}
	}
}

func TestCallersDoNotFailWhileTokensEnd(t *testing.T) {
	l := newLab(t)
	l.SetTokenLifetime(2 * time.Second)
	p := l.provider(t)
	w, err := p.Wrap(t.Context(), []byte("key"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	ended := make(chan error, 8)
	for range cap(ended) {
		go func() {
			for ctx.Err() == nil {
				if _, err := p.Unwrap(t.Context(), w); err != nil {
					ended <- err
					return
				}
			}
			ended <- nil
		}()
	}
	for range cap(ended) {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	if n := l.Calls("MetadataToken"); n < 3 {
		t.Errorf("%d tokens of two seconds each for three seconds", n)
	}
}

func TestAPersonsLoginIsNotedAndItsQuotaProjectNamed(t *testing.T) {
	l := newLab(t)
	path := writeFile(t, "login.json", []byte(`{"type": "authorized_user", "client_id": "i", "client_secret": "s", "refresh_token": "r"}`))
	p := l.provider(t, func(c *gcpkms.Config) { c.CredentialsFile = path })
	p.Close()
	if _, err := p.Identity(t.Context()); err == nil || strings.Contains(err.Error(), "client_secret") {
		t.Errorf("after Close: %v", err)
	}

	var file map[string]string
	if err := json.Unmarshal(l.KeyFile(me), &file); err != nil {
		t.Fatal(err)
	}
	file["quota_project_id"] = "payer"
	raw, err := json.Marshal(file)
	if err != nil {
		t.Fatal(err)
	}
	path = writeFile(t, "key.json", raw)
	if err := current(t.Context(), l.provider(t, func(c *gcpkms.Config) { c.CredentialsFile = path })); err != nil {
		t.Fatal(err)
	}
	if call := l.Log()[0]; call.Quota != "payer" {
		t.Errorf("counted against %q", call.Quota)
	}
}

func TestWhenTheTokenIsHadAndItsOwnerIsNot(t *testing.T) {
	l := newLab(t)
	m := newMachine(t, l.Metadata(me))
	p := l.provider(t)
	if err := current(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	m.status.Store(503)
	if _, err := p.Identity(t.Context()); kek.KindOf(err) != kek.Unavailable {
		t.Errorf("from the metadata server: %v", err)
	}
	path := writeFile(t, "key.json", l.KeyFile(me))
	p = l.provider(t, func(c *gcpkms.Config) { c.CredentialsFile = path })
	if err := current(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Identity(t.Context()); kek.KindOf(err) != kek.Unauthenticated || !strings.Contains(err.Error(), path) {
		t.Errorf("from a file that is gone: %v", err)
	}
}

// The environment's proxies are read once in a process, so the test runs in one
// of its own, in which KMS is known by its real name and reached by the proxy.
func TestAProxyFromTheEnvironmentLeadsToKMS(t *testing.T) {
	if key := os.Getenv("PROXIED_KEY"); key != "" {
		p, err := gcpkms.New(t.Context(), gcpkms.Config{Key: key, CABundle: os.Getenv("PROXIED_CA")})
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := current(ctx, p); err != nil {
			t.Error(err)
		}
		return
	}
	l := newLab(t)
	asked := make(chan string, 8)
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r.Method + " " + r.Host
		to, err := net.Dial("tcp", l.Address())
		if err != nil {
			t.Error(err)
			return
		}
		from, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		io.WriteString(from, "HTTP/1.1 200 OK\r\n\r\n")
		go io.Copy(to, from)
		io.Copy(from, to)
	}))
	defer proxy.Close()
	child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$")
	child.Env = append(os.Environ(), "PROXIED_KEY="+l.key, "PROXIED_CA="+l.ca, "HTTPS_PROXY="+proxy.URL, "HTTP_PROXY="+proxy.URL, "NO_PROXY=")
	if out, err := child.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if got := <-asked; got != "CONNECT cloudkms.googleapis.com:443" || l.Calls("GetCryptoKey") != 1 {
		t.Errorf("the proxy was asked %q, and KMS %d times", got, l.Calls("GetCryptoKey"))
	}
}

func TestAnSTSThatIsAbsentIsUnavailable(t *testing.T) {
	l := newLab(t)
	f := newFederation(t, l, nil, "")
	raw, err := os.ReadFile(f.config)
	if err != nil {
		t.Fatal(err)
	}
	var config map[string]any
	if err := json.Unmarshal(raw, &config); err != nil {
		t.Fatal(err)
	}
	gone := httptest.NewServer(nil)
	gone.Close()
	config["token_url"] = gone.URL
	if raw, err = json.Marshal(config); err != nil {
		t.Fatal(err)
	}
	path := writeFile(t, "external.json", raw)
	f.write(t, "node", time.Now().Add(time.Hour))
	p := l.provider(t, func(c *gcpkms.Config) { c.CredentialsFile = path })
	if err := current(t.Context(), p); kek.KindOf(err) != kek.Unavailable || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("nobody listens: %v", err)
	}
}

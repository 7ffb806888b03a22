package azurekv_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kube-kek/kube-kek/kek"
	"github.com/kube-kek/kube-kek/kek/azurekv"
	"github.com/kube-kek/kube-kek/kek/azurekv/azurekvtest"
)

var every = []string{"keys/*"}

// onMachine is a provider of a managed identity, on a machine whose metadata
// service the stand-in is.
func (l *lab) onMachine(t testing.TB, clientID string) *azurekv.Provider {
	t.Helper()
	metadata := l.Start()
	t.Cleanup(metadata.Close)
	t.Setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", metadata.URL)
	return l.provider(t, func(c *azurekv.Config) { c.TenantID, c.ClientID, c.SecretFile = "", clientID, "" })
}

func works(t testing.TB, p kek.Provider) {
	t.Helper()
	key := newKey()
	got, err := p.Unwrap(t.Context(), mustWrap(t, p, key))
	if err != nil || !slices.Equal(got, key) {
		t.Errorf("Unwrap: %v", err)
	}
}

func identity(t testing.TB, p *azurekv.Provider, want string) {
	t.Helper()
	if got, err := p.Identity(t.Context()); err != nil || got != want {
		t.Errorf("Identity: %q, %v; want %q", got, err, want)
	}
}

func TestManagedIdentity(t *testing.T) {
	for name, system := range map[string]bool{"the machine's own": true, "one that is named": false} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, azurekvtest.Config{})
			l.AddPrincipal(azurekvtest.Principal{ResourceID: "/subscriptions/x/other", System: !system})
			me := l.AddPrincipal(azurekvtest.Principal{ResourceID: "/subscriptions/x/kek", System: system, Allow: every})
			id := me.ClientID
			if system {
				id = ""
			}
			p := l.onMachine(t, id)
			works(t, p)
			if n := l.Calls(azurekvtest.ActionMetadata); n != 1 {
				t.Errorf("%d tokens were fetched, want 1", n)
			}
			identity(t, p, "appid="+me.ClientID+";oid="+me.ObjectID+";xms_mirid=/subscriptions/x/kek")
			if _, err := p.Current(t.Context()); err != nil {
				t.Errorf("Current: %v", err)
			}
			if f := p.Facts(); len(f.Notes) != 0 {
				t.Errorf("Notes: %q: a managed identity is nothing to warn of", f.Notes)
			}
		})
	}
}

func TestManagedIdentityFails(t *testing.T) {
	for _, test := range []struct {
		name  string
		fault azurekvtest.Fault
		kind  kek.Kind
		after time.Duration
		says  string
	}{
		{"the machine has none", azurekvtest.Fault{}, kek.Unauthenticated, 0, "Identity not found"},
		{"the metadata service is being updated", azurekvtest.Fault{Status: 410, Code: "gone"}, kek.Unavailable, 0, "status 410"},
		{"the metadata service throttles", azurekvtest.Fault{Status: 429, Code: "too_many_requests", RetryAfter: 7 * time.Second}, kek.Throttled, 7 * time.Second, "status 429"},
		{"the metadata service is broken", azurekvtest.Fault{Status: 500, Body: []byte("<html>oh")}, kek.Unavailable, 0, "status 500"},
		{"the metadata service talks nonsense", azurekvtest.Fault{Body: []byte("oh")}, kek.Unauthenticated, 0, "managed-identity"},
		{"nobody is there", azurekvtest.Fault{Drop: true}, kek.Unavailable, 0, "only machines of Azure"},
	} {
		t.Run(test.name, func(t *testing.T) {
			l := newLab(t, azurekvtest.Config{})
			id := ""
			if test.fault.Status+len(test.fault.Body) > 0 || test.fault.Drop {
				id = l.AddPrincipal(azurekvtest.Principal{ResourceID: "/x", Allow: every}).ClientID
				test.fault.Actions = []string{azurekvtest.ActionMetadata}
				l.SetFault(test.fault)
			}
			p := l.onMachine(t, id)
			fails(t, p, test.kind, test.after, test.says)
			if id != "" {
				l.SetFault()
				works(t, p)
			}
		})
	}
}

// fails checks that a call fails and says how it tried to get a token.
func fails(t testing.TB, p kek.Provider, kind kek.Kind, after time.Duration, says string) {
	t.Helper()
	_, err := p.Current(t.Context())
	e, ok := err.(*kek.Error)
	if !ok || e.Kind != kind || e.RetryAfter != after || !strings.Contains(e.Error(), says) || !strings.Contains(e.Error(), "getting an access token by ") || strings.Contains(e.Error(), "\n") {
		t.Errorf("Current: %v (retry after %v), want %v after %v in one line that says %q", err, e.RetryAfter, kind, after, says)
	}
}

// issuer is a cluster's, for one ServiceAccount.
type issuer struct {
	key *ecdsa.PrivateKey
	azurekvtest.Issuer
}

func newIssuer(t testing.TB) issuer {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return issuer{key, azurekvtest.Issuer{URL: "https://cluster.example", Subject: "system:serviceaccount:kube-system:kube-kek", Key: &key.PublicKey}}
}

// token makes a ServiceAccount's token.
func (i issuer) token(t testing.TB, change ...func(map[string]any)) []byte {
	t.Helper()
	claims := map[string]any{
		"iss": i.URL, "sub": i.Subject, "aud": []string{"api://AzureADTokenExchange"},
		"nbf": time.Now().Add(-time.Minute).Unix(), "exp": time.Now().Add(time.Hour).Unix(),
	}
	for _, f := range change {
		f(claims)
	}
	encode := func(v any) string {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return base64.RawURLEncoding.EncodeToString(b)
	}
	signed := encode(map[string]string{"alg": "ES256"}) + "." + encode(claims)
	sum := sha256.Sum256([]byte(signed))
	r, s, err := ecdsa.Sign(rand.Reader, i.key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	signature := make([]byte, 64)
	r.FillBytes(signature[:32])
	s.FillBytes(signature[32:])
	return []byte(signed + "." + base64.RawURLEncoding.EncodeToString(signature))
}

// inPod is a provider with a workload identity, set up by the environment as the
// cluster's webhook does.
func (l *lab) inPod(t testing.TB, i issuer, token []byte) (p *azurekv.Provider, file string) {
	t.Helper()
	me := l.AddPrincipal(azurekvtest.Principal{Federated: &i.Issuer, Allow: every})
	file = filepath.Join(t.TempDir(), "token")
	write(t, file, 0o644, token)
	t.Setenv("AZURE_TENANT_ID", l.Tenant())
	t.Setenv("AZURE_CLIENT_ID", me.ClientID)
	t.Setenv("AZURE_FEDERATED_TOKEN_FILE", file)
	t.Setenv("AZURE_AUTHORITY_HOST", l.vault.URL+"/")
	return l.provider(t, func(c *azurekv.Config) { c.TenantID, c.ClientID, c.SecretFile, c.AuthorityHost = "", "", "", "" }), file
}

func TestWorkloadIdentity(t *testing.T) {
	l := newLab(t, azurekvtest.Config{})
	i := newIssuer(t)
	p, _ := l.inPod(t, i, i.token(t))
	works(t, p)
	if n := l.Calls(azurekvtest.ActionToken); n != 1 {
		t.Errorf("%d tokens were fetched, want 1", n)
	}
}

func TestWorkloadIdentityIsRefused(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(map[string]any)
		says   string
	}{
		{"for another audience", func(c map[string]any) { c["aud"] = "https://kubernetes.default.svc" }, "AADSTS700212"},
		{"of another issuer", func(c map[string]any) { c["iss"] = "https://elsewhere.example" }, "AADSTS700211"},
		{"of another ServiceAccount", func(c map[string]any) { c["sub"] = "system:serviceaccount:default:default" }, "AADSTS700213"},
		{"that has ended", func(c map[string]any) { c["exp"] = time.Now().Add(-time.Minute).Unix() }, "AADSTS700024"},
		{"with a forged signature", nil, "AADSTS7000272"},
	} {
		t.Run("a token "+test.name, func(t *testing.T) {
			l := newLab(t, azurekvtest.Config{})
			i := newIssuer(t)
			var token []byte
			if test.change != nil {
				token = i.token(t, test.change)
			} else {
				token = newIssuer(t).token(t)
			}
			p, file := l.inPod(t, i, token)
			fails(t, p, kek.Unauthenticated, 0, test.says)
			write(t, file, 0o644, i.token(t)) // the kubelet's renewal
			works(t, p)
		})
	}
}

func TestTokenFileIsMissing(t *testing.T) {
	l := newLab(t, azurekvtest.Config{})
	i := newIssuer(t)
	p, file := l.inPod(t, i, i.token(t))
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	fails(t, p, kek.Unauthenticated, 0, file)
	write(t, file, 0o600, i.token(t))
	works(t, p)
}

// newCertificate returns a certificate, and PEM of it with its key.
func newCertificate(t testing.TB) (*x509.Certificate, []byte) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "kube-kek"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return cert, append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})...)
}

func TestCertificate(t *testing.T) {
	l := newLab(t, azurekvtest.Config{TokenLife: time.Second})
	old, oldPEM := newCertificate(t)
	young, youngPEM := newCertificate(t)
	me := l.AddPrincipal(azurekvtest.Principal{Certificate: old, Allow: every})
	file := filepath.Join(t.TempDir(), "client.pem")
	write(t, file, 0o600, oldPEM)
	p := l.provider(t, func(c *azurekv.Config) { c.ClientID, c.SecretFile, c.CertificateFile = me.ClientID, "", file })
	works(t, p)
	identity(t, p, "appid="+me.ClientID+";oid="+me.ObjectID)

	// The certificate is renewed: in Entra ID, then here.
	me.Certificate = young
	l.AddPrincipal(me)
	time.Sleep(1100 * time.Millisecond)
	fails(t, p, kek.Unauthenticated, 0, "AADSTS700027")
	write(t, file, 0o600, youngPEM)
	works(t, p)
}

func TestTokensAreRenewedUnderLoad(t *testing.T) {
	l := newLab(t, azurekvtest.Config{TokenLife: time.Second})
	me := l.AddPrincipal(azurekvtest.Principal{ResourceID: "/x", Allow: every})
	p := l.onMachine(t, me.ClientID)
	w := mustWrap(t, p, newKey())
	end := time.Now().Add(4 * time.Second)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for time.Now().Before(end) {
				if _, err := p.Unwrap(t.Context(), w); err != nil {
					t.Errorf("Unwrap: %v", err)
					return
				}
				time.Sleep(10 * time.Millisecond)
			}
		})
	}
	wg.Wait()
	if n := l.Calls(azurekvtest.ActionMetadata); n < 3 {
		t.Errorf("%d tokens were fetched in 4 s, and each is valid for 1 s", n)
	}
}

func TestATokenThatTheVaultRefusesIsNotUsedAgain(t *testing.T) {
	for name, setup := range map[string]func(t *testing.T, l *lab) *azurekv.Provider{
		"managed identity": func(t *testing.T, l *lab) *azurekv.Provider {
			return l.onMachine(t, l.AddPrincipal(azurekvtest.Principal{ResourceID: "/x", Allow: every}).ClientID)
		},
		"client secret": func(t *testing.T, l *lab) *azurekv.Provider { return l.provider(t) },
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, azurekvtest.Config{})
			p := setup(t, l)
			works(t, p)
			l.ResetCalls()
			f := azurekvtest.Unauthorized()
			f.Times = 1
			l.SetFault(f)
			works(t, p)
			if n := l.Calls(azurekvtest.ActionMetadata) + l.Calls(azurekvtest.ActionToken); n != 1 {
				t.Errorf("%d tokens were fetched after a refusal, want 1", n)
			}
		})
	}
}

func TestACallerLeavesWhileAnotherFetchesTheToken(t *testing.T) {
	l := newLab(t, azurekvtest.Config{})
	p := l.provider(t)
	w := mustWrap(t, l.provider(t), newKey())
	l.ResetCalls()
	l.SetFault(azurekvtest.Fault{Actions: []string{azurekvtest.ActionToken}, Latency: 2 * time.Second})
	impatient, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if _, err := p.Unwrap(impatient, w); kek.KindOf(err) != kek.Unavailable {
				t.Errorf("Unwrap by a caller who leaves: %v", err)
			}
			if slices.ContainsFunc(l.Log(), func(c azurekvtest.Call) bool { return c.Action == "UnwrapKey" && c.Principal != "" }) {
				t.Errorf("a caller left after the token had come")
			}
		})
	}
	wg.Wait()
	// What the first one began serves the next: it did not end with its caller.
	if _, err := p.Unwrap(t.Context(), w); err != nil {
		t.Errorf("Unwrap: %v", err)
	}
	if n := l.Calls(azurekvtest.ActionToken); n != 1 {
		t.Errorf("%d tokens were fetched, want 1", n)
	}
}

func TestOneCredentialIsChosen(t *testing.T) {
	_, certificate := newCertificate(t)
	for _, test := range []struct {
		name   string
		config azurekv.Config // TokenFile etc. name a file that is made
		env    map[string]string
		says   string // of the error that follows
	}{
		{"nothing is set up", azurekv.Config{}, nil, "managed-identity"},
		{"a client ID alone", azurekv.Config{ClientID: "c"}, nil, "managed-identity"},
		{"a token", azurekv.Config{TokenFile: "token"}, nil, "workload-identity"},
		{"a token before a certificate", azurekv.Config{TokenFile: "token", CertificateFile: "pem"}, nil, "workload-identity"},
		{"a certificate", azurekv.Config{CertificateFile: "pem"}, nil, "certificate"},
		{"a certificate before a token of the environment", azurekv.Config{CertificateFile: "pem"}, map[string]string{"AZURE_FEDERATED_TOKEN_FILE": "token"}, "certificate"},
		{"a certificate of the environment", azurekv.Config{}, map[string]string{"AZURE_CLIENT_CERTIFICATE_PATH": "pem"}, "certificate"},
		{"a secret of the environment", azurekv.Config{}, map[string]string{"AZURE_CLIENT_SECRET": "s"}, "secret"},
		{"a managed identity, whatever is set up", azurekv.Config{Credential: azurekv.CredentialManagedIdentity, SecretFile: "secret"}, map[string]string{"AZURE_FEDERATED_TOKEN_FILE": "token"}, "managed-identity"},
	} {
		t.Run(test.name, func(t *testing.T) {
			l := newLab(t, azurekvtest.Config{})
			dir := t.TempDir()
			for _, name := range []string{"token", "pem", "secret"} {
				write(t, filepath.Join(dir, name), 0o600, certificate)
			}
			c := test.config
			for _, f := range []*string{&c.TokenFile, &c.CertificateFile, &c.SecretFile} {
				if *f != "" {
					*f = filepath.Join(dir, *f)
				}
			}
			for name, value := range test.env {
				if value != "s" {
					value = filepath.Join(dir, value)
				}
				t.Setenv(name, value)
			}
			metadata := l.Start()
			defer metadata.Close()
			t.Setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", metadata.URL)
			t.Setenv("AZURE_TENANT_ID", l.Tenant())
			if c.ClientID == "" && test.says != "managed-identity" {
				t.Setenv("AZURE_CLIENT_ID", "nobody")
			}
			c.Key, c.Endpoint, c.CABundle, c.AuthorityHost = l.config.Key, l.config.Endpoint, l.config.CABundle, l.config.AuthorityHost
			p, err := azurekv.New(t.Context(), c)
			if err != nil {
				t.Fatalf("New: %v", err)
			}
			defer p.Close()
			fails(t, p, kek.Unauthenticated, 0, "by "+test.says+":")
		})
	}
}

func TestConfigIsRefused(t *testing.T) {
	l := newLab(t, azurekvtest.Config{})
	dir := t.TempDir()
	open := filepath.Join(dir, "open")
	write(t, open, 0o644, []byte("secret"))
	text := filepath.Join(dir, "text")
	write(t, text, 0o600, []byte("no certificate"))
	for _, test := range []struct {
		name   string
		change func(*azurekv.Config)
		says   string
	}{
		{"no key", func(c *azurekv.Config) { c.Key = "" }, "VAULT.vault.azure.net/keys/NAME"},
		{"a key of another cloud's", func(c *azurekv.Config) { c.Key = "kek.vault.example.com/keys/kek" }, "no domain of Azure"},
		{"a key of no vault", func(c *azurekv.Config) { c.Key = "management.azure.net/keys/kek" }, "VAULT.vault.azure.net"},
		{"a key with a port", func(c *azurekv.Config) { c.Key = "kek.vault.azure.net:8443/keys/kek" }, "no domain of Azure"},
		{"a key with a version", func(c *azurekv.Config) { c.Key += "/" + strings.Repeat("0", 32) }, "without a version"},
		{"a secret of the vault", func(c *azurekv.Config) { c.Key = "kek.vault.azure.net/secrets/kek" }, "VAULT.vault.azure.net"},
		{"a name too long for a key ID", func(c *azurekv.Config) { c.Key = l.Host() + "/keys/" + strings.Repeat("k", 127) }, "key IDs have room"},
		{"an endpoint in clear", func(c *azurekv.Config) { c.Endpoint = "http://127.0.0.1:8200" }, "must be https"},
		{"an endpoint that is no URL", func(c *azurekv.Config) { c.Endpoint = "127.0.0.1:8200" }, "not a URL"},
		{"an endpoint with credentials", func(c *azurekv.Config) { c.Endpoint = "https://me:word@kek.example" }, "not a URL"},
		{"an authority in clear", func(c *azurekv.Config) { c.AuthorityHost = "http://login.example" }, "must be https"},
		{"a CA bundle that is missing", func(c *azurekv.Config) { c.CABundle = filepath.Join(dir, "none") }, "CA bundle"},
		{"a CA bundle without certificates", func(c *azurekv.Config) { c.CABundle = text }, "no PEM certificate"},
		{"a credential that there is not", func(c *azurekv.Config) { c.Credential = "cli" }, `"cli" is none of workload-identity`},
		{"no tenant", func(c *azurekv.Config) { c.TenantID = "" }, "tenant ID"},
		{"no client", func(c *azurekv.Config) { c.ClientID = "" }, "client ID"},
		{"a secret that everyone can read", func(c *azurekv.Config) { c.SecretFile = open }, "chmod"},
		{"a certificate that everyone can read", func(c *azurekv.Config) { c.CertificateFile = open }, "chmod"},
		{"a certificate that is none", func(c *azurekv.Config) { c.CertificateFile = text }, text},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := l.config
			test.change(&c)
			_, err := azurekv.New(t.Context(), c)
			if kek.KindOf(err) != kek.Invalid || err == nil || !strings.Contains(err.Error(), test.says) {
				t.Errorf("New: %v, want %v that says %q", err, kek.Invalid, test.says)
			}
		})
	}
	if n := l.Calls(""); n != 0 {
		t.Errorf("New asked the network %d times", n)
	}
}

func TestID(t *testing.T) {
	for key, want := range map[string]string{
		"kek.vault.azure.net/keys/Name-1":                   "kek.vault.azure.net/keys/Name-1",
		"KEK.Vault.Azure.NET/keys/Name-1":                   "kek.vault.azure.net/keys/Name-1",
		"kek.vault.azure.net/Name-1":                        "kek.vault.azure.net/keys/Name-1",
		"kek.managedhsm.azure.net/keys/k":                   "kek.managedhsm.azure.net/keys/k",
		"kek.vault.azure.cn/keys/k":                         "kek.vault.azure.cn/keys/k",
		"kek.vault.usgovcloudapi.net/keys/k":                "kek.vault.usgovcloudapi.net/keys/k",
		"a234567890123456789012ab.vault.azure.net/keys/k":   "a234567890123456789012ab.vault.azure.net/keys/k",
		"a234567890123456789012abc.vault.azure.net/keys/k":  "",
		"kek.vault.azure.net/keys/under_score":              "",
		"kek.vault.azure.net":                               "",
		"https://kek.vault.azure.net/keys/k":                "",
		fmt.Sprintf("kek.vault.azure.net/keys/%0128d", 1):   "",
		"kek.vault.azure.net.attacker.example/keys/Name-1":  "",
		"kek.vault.azure.net/keys/k?api-version=7.4":        "",
		"attacker.example/kek.vault.azure.net/keys/Name-1":  "",
		"kek.managedhsm.azure.net/keys/k/" + "0123456789ab": "",
	} {
		got, err := azurekv.ID(key)
		if got != want || (err != nil) != (want == "") {
			t.Errorf("ID(%q) = %q, %v; want %q", key, got, err, want)
		}
	}
}

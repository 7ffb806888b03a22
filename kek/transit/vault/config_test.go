package vault_test

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/kube-kek/kube-kek/kek"
	"github.com/kube-kek/kube-kek/kek/transit/vault"
)

func TestBadConfigurationIsInvalidAndSaysWhy(t *testing.T) {
	clearEnv(t)
	notPEM := write(t, "not.pem", "no certificate")
	token := vault.Auth{TokenFile: "/token"}
	for _, c := range []struct {
		name   string
		config vault.Config
		want   string
	}{
		{"no way to log in", vault.Config{}, "kubernetes, jwt, approle or cert"},
		{"an unknown method", vault.Config{Auth: vault.Auth{Method: "ldap"}}, `"ldap" is no way to log in`},
		{"Kubernetes without a role", vault.Config{Auth: vault.Auth{Method: vault.Kubernetes}}, "kubernetes needs a role"},
		{"JWT without a role", vault.Config{Auth: vault.Auth{Method: vault.JWT, TokenFile: "/jwt"}}, "jwt needs a role"},
		{"JWT without a file", vault.Config{Auth: vault.Auth{Method: vault.JWT, Role: "kek"}}, "jwt needs a token file"},
		{"AppRole without a role ID", vault.Config{Auth: vault.Auth{Method: vault.AppRole}}, "approle needs a role ID"},
		{"a certificate's login without one", vault.Config{Auth: vault.Auth{Method: vault.Cert}}, "cert needs a client certificate"},
		{"a certificate without its key", vault.Config{Auth: token, ClientCert: "/cert"}, "together"},
		{"a key without its certificate", vault.Config{Auth: token, ClientKey: "/key"}, "together"},
		{"an address that is plain http", vault.Config{Auth: token, Address: "http://vault.internal:8200"}, "http://vault.internal:8200 must be https"},
		{"an address with a password", vault.Config{Auth: token, Address: "https://me:secret@vault.internal"}, "of vault.internal holds credentials"},
		{"an address that is no URL", vault.Config{Auth: token, Address: "vault.internal"}, "not a URL"},
		{"an address with a bad byte", vault.Config{Auth: token, Address: "https://vault\x00"}, "not a URL"},
		{"a socket without a path", vault.Config{Auth: token, Address: "unix://"}, "not a URL"},
		{"a CA bundle that is not there", vault.Config{Auth: token, CABundle: "/none"}, "no such file"},
		{"a CA bundle that is not PEM", vault.Config{Auth: token, CABundle: notPEM}, "CA bundle"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := vault.New(c.config)
			want(t, err, kek.Invalid, c.want)
		})
	}
	for name, value := range map[string]string{
		"VAULT_SKIP_VERIFY": "true", "VAULT_CACERT": "/none", "VAULT_CLIENT_TIMEOUT": "soon", "VAULT_ADDR": "http://vault.internal", "BAO_ADDR": "http://vault.internal",
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv(name, value)
			_, err := vault.New(vault.Config{Auth: token})
			want(t, err, kek.Invalid)
		})
	}
}

func TestTheEnvironmentSaysWhatTheConfigurationDoesNot(t *testing.T) {
	s, other := start(t), start(t)
	var namespace string
	s.handle(secret, func(w http.ResponseWriter, r *http.Request) {
		namespace = r.Header.Get("X-Vault-Namespace")
		io.WriteString(w, `{"data":{}}`)
	})
	t.Setenv("VAULT_ADDR", other.URL)
	t.Setenv("BAO_ADDR", s.URL)
	t.Setenv("VAULT_NAMESPACE", "admin/")
	t.Setenv("VAULT_WRAP_TTL", "1m")
	c := client(t, vault.Config{})
	if err := read(t.Context(), c); err != nil || namespace != "admin" || c.Namespace() != "admin" {
		t.Errorf("namespace %q, %v", namespace, err)
	}
	t.Setenv("BAO_ADDR", other.URL)
	t.Setenv("VAULT_AGENT_ADDR", other.URL)
	if err := read(t.Context(), client(t, vault.Config{Address: s.URL, Namespace: "team"})); err != nil || namespace != "team" {
		t.Errorf("namespace %q, %v", namespace, err)
	}
}

func TestASocketIsAnAddress(t *testing.T) {
	start(t)
	path := filepath.Join(t.TempDir(), "vault.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, living) })}
	go s.Serve(l)
	defer s.Close()
	if err := read(t.Context(), client(t, vault.Config{Address: "unix://" + path})); err != nil {
		t.Error(err)
	}
}

func TestAProxyOfTheEnvironmentIsUsed(t *testing.T) {
	start(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	asked := make(chan string, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		r, err := http.ReadRequest(bufio.NewReader(conn))
		if err == nil {
			asked <- r.Method + " " + r.Host
			io.WriteString(conn, "HTTP/1.1 502 Bad Gateway\r\n\r\n")
		}
	}()
	t.Setenv("VAULT_PROXY_ADDR", "http://"+l.Addr().String())
	want(t, read(t.Context(), client(t, vault.Config{Address: "https://vault.test:8200"})), kek.Unavailable, "Bad Gateway")
	if got := <-asked; got != "CONNECT vault.test:8200" {
		t.Errorf("the proxy was asked for %q", got)
	}
}

// authority is a CA and what it issues.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	path string
}

func newAuthority(t *testing.T, until time.Time) *authority {
	key := newKey(t)
	cert := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: until, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	if cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return &authority{t, cert, key, write(t, "ca.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))}
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// issue returns the paths of a certificate for name and of its key.
func (a *authority) issue(name string) (cert, key string) {
	private := newKey(a.t)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}, a.cert, private.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		a.t.Fatal(err)
	}
	return write(a.t, name+".pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))),
		write(a.t, name+"-key.pem", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})))
}

// startTLS starts s anew under a certificate for vault.test. A request is
// answered with the name in its client's certificate.
func (a *authority) startTLS(change func(*tls.Config)) (url string) {
	certPath, keyPath := a.issue("vault.test")
	cert, err := tls.LoadX509KeyPair(certPath, keyPath)
	if err != nil {
		a.t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := r.TLS.ServerName + " " + r.Proto
		for _, c := range r.TLS.PeerCertificates {
			name += " from " + c.Subject.CommonName
		}
		io.WriteString(w, `{"data":{"ttl":3600,"display_name":"`+name+`"}}`)
	}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.EnableHTTP2 = true
	s.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequestClientCert}
	change(s.TLS)
	s.StartTLS()
	a.t.Cleanup(s.Close)
	return s.URL
}

func TestTheServersCertificateIsVerified(t *testing.T) {
	start(t)
	a := newAuthority(t, time.Now().Add(time.Hour))
	url := a.startTLS(func(*tls.Config) {})
	good := vault.Config{Address: url, CABundle: a.path, ServerName: "vault.test"}
	who, err := client(t, good).Identity(t.Context())
	if err != nil || who != "vault.test HTTP/1.1 by " {
		t.Errorf("%q, %v", who, err)
	}
	for name, c := range map[string]struct {
		config vault.Config
		want   string
	}{
		"of the system's authorities":    {vault.Config{Address: url, ServerName: "vault.test"}, "unknown authority"},
		"of another authority":           {vault.Config{Address: url, ServerName: "vault.test", CABundle: newAuthority(t, time.Now().Add(time.Hour)).path}, "signed by unknown authority"},
		"of another name":                {vault.Config{Address: url, CABundle: a.path, ServerName: "other.test"}, "vault.test, not other.test"},
		"of the address, which it lacks": {vault.Config{Address: url, CABundle: a.path}, "127.0.0.1"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := client(t, c.config).Identity(t.Context())
			want(t, err, kek.Unavailable, "certificate is not trusted", c.want, "correct the CA bundle")
		})
	}
	old := newAuthority(t, time.Now().Add(-time.Minute))
	url = old.startTLS(func(*tls.Config) {})
	_, err = client(t, vault.Config{Address: url, CABundle: old.path, ServerName: "vault.test"}).Identity(t.Context())
	want(t, err, kek.Unavailable, "certificate is not trusted", "has expired", "renew it")
}

func TestTLSIsOfVersion12AtLeast(t *testing.T) {
	start(t)
	a := newAuthority(t, time.Now().Add(time.Hour))
	for version, works := range map[uint16]bool{tls.VersionTLS11: false, tls.VersionTLS12: true, tls.VersionTLS13: true} {
		url := a.startTLS(func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, version })
		_, err := client(t, vault.Config{Address: url, CABundle: a.path, ServerName: "vault.test"}).Identity(t.Context())
		if works != (err == nil) {
			t.Errorf("%s: %v", tls.VersionName(version), err)
		}
		if !works {
			want(t, err, kek.Unavailable, "protocol version")
		}
	}
}

func TestAClientCertificateIsReadForEachConnection(t *testing.T) {
	start(t)
	a := newAuthority(t, time.Now().Add(time.Hour))
	conf := vault.Config{Address: a.startTLS(func(*tls.Config) {}), CABundle: a.path, ServerName: "vault.test"}
	conf.ClientCert, conf.ClientKey = a.issue("node-1")
	c := client(t, conf)
	is := func(name string) {
		t.Helper()
		if who, err := c.Identity(t.Context()); err != nil || who != "vault.test HTTP/1.1 from "+name+" by " {
			t.Errorf("%q, %v", who, err)
		}
	}
	is("node-1")
	cert, key := a.issue("node-2")
	for from, to := range map[string]string{cert: conf.ClientCert, key: conf.ClientKey} {
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	is("node-1")
	c.Close()
	is("node-2")

	refused := func(words string) {
		t.Helper()
		_, err := client(t, conf).Identity(t.Context())
		want(t, err, kek.Unauthenticated, words)
	}
	conf.ClientCert, conf.ClientKey = a.issue("node-3")
	chmod(t, conf.ClientKey, 0o644)
	refused("mode 0644, which opens it to others: chmod 600 " + conf.ClientKey)
	chmod(t, conf.ClientKey, 0o600)
	chmod(t, conf.ClientCert, 0o666)
	refused("chmod 600 " + conf.ClientCert)
	chmod(t, conf.ClientCert, 0o644)
	_, conf.ClientKey = a.issue("node-4")
	refused("client certificate " + conf.ClientCert)
	conf.ClientKey += ".none"
	refused("no such file")
}

func write(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func chmod(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

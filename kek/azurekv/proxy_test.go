package azurekv_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/kube-kek/kube-kek/kek/azurekv"
	"github.com/kube-kek/kube-kek/kek/azurekv/azurekvtest"
)

// proxy tunnels every CONNECT to one address, and keeps whom it was asked for.
type proxy struct {
	to    string
	mu    sync.Mutex
	asked map[string]bool
}

func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	p.asked[r.Host] = true
	p.mu.Unlock()
	if r.Method != http.MethodConnect {
		http.Error(w, "this proxy tunnels", http.StatusForbidden)
		return
	}
	server, err := net.Dial("tcp", p.to)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer server.Close()
	client, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer client.Close()
	_, _ = io.WriteString(client, "HTTP/1.1 200 OK\r\n\r\n")
	go func() {
		_, _ = io.Copy(server, client)
		server.Close()
	}()
	_, _ = io.Copy(client, server)
}

// TestThroughAProxy reaches the vault and Entra ID under their own names, as in
// the world, with the SDK's verification of challenges on. Go reads the proxies'
// environment variables once, so the provider lives in a process of its own.
func TestThroughAProxy(t *testing.T) {
	const child = "AZUREKV_TEST_CHILD"
	if c := os.Getenv(child); c != "" {
		throughAProxy(t, c)
		return
	}
	l := newLab(t, azurekvtest.Config{})
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{l.Host(), "login.microsoftonline.com"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	world := httptest.NewUnstartedServer(l)
	world.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	world.StartTLS()
	defer world.Close()
	write(t, l.ca, 0o644, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	tunnel := &proxy{to: world.Listener.Addr().String(), asked: map[string]bool{}}
	server := httptest.NewServer(tunnel)
	defer server.Close()

	c := l.config
	c.Endpoint, c.AuthorityHost = "", ""
	config, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestThroughAProxy$", "-test.v")
	cmd.Env = append(os.Environ(), child+"="+string(config), "HTTPS_PROXY="+server.URL, "HTTP_PROXY="+server.URL, "NO_PROXY=")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	tunnel.mu.Lock()
	defer tunnel.mu.Unlock()
	want := map[string]bool{l.Host() + ":443": true, "login.microsoftonline.com:443": true}
	if diff := cmp.Diff(want, tunnel.asked); diff != "" {
		t.Errorf("the proxy was asked for: %s", diff)
	}
}

func throughAProxy(t *testing.T, config string) {
	var c azurekv.Config
	if err := json.Unmarshal([]byte(config), &c); err != nil {
		t.Fatal(err)
	}
	p, err := azurekv.New(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	works(t, p)

	// The metadata service answers in clear: no proxy may hear of it.
	c.Credential = azurekv.CredentialManagedIdentity
	if p, err = azurekv.New(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, _ = p.Identity(ctx) // whether this machine has one or not
}

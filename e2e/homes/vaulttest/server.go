// Package vaulttest runs a real Vault server for tests: TLS on loopback, storage
// in memory, gone with the test. What an operator does to it goes by its API as
// root; what it does is in an audit log.
package vaulttest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/kube-kek/kube-kek/e2e/internal/lab"
	"github.com/kube-kek/kube-kek/e2e/internal/parts"
)

// Server is a Vault that is initialised and unsealed.
type Server struct {
	URL string // https on loopback
	CA  string // the path of its authority's certificate, in PEM
	Dir string // for files of the test

	host   lab.Host
	root   string // the root token
	unseal string
	http   *http.Client
	ca     *x509.Certificate
	caKey  *ecdsa.PrivateKey
}

// Start starts a server, which ends with the test.
func Start(h lab.Host) *Server {
	h.Helper()
	vault, err := parts.Path(h.Context(), parts.Vault)
	if err != nil {
		h.Fatalf("%v", err)
	}
	dir, err := os.MkdirTemp("", "kube-kek-vault-")
	if err != nil {
		h.Fatalf("%v", err)
	}
	h.Cleanup(func() { os.RemoveAll(dir) })
	s := &Server{host: h, Dir: dir}
	s.authority()
	cert, key := s.Certificate("vault", "127.0.0.1", time.Now().Add(time.Hour))

	address := freeAddress(h)
	s.URL = "https://" + address
	config := s.Write("vault.hcl", fmt.Sprintf(`
disable_mlock = true
storage "inmem" {}
api_addr = %q
listener "tcp" {
  address       = %q
  tls_cert_file = %q
  tls_key_file  = %q
}
`, s.URL, address, cert, key))
	log := filepath.Join(dir, "vault.log")
	s.run(log, vault, "server", "-config="+config)
	h.Cleanup(func() {
		if h.Failed() {
			text, _ := os.ReadFile(log)
			h.Logf("the end of vault's log:\n%s", text[max(0, len(text)-1500):])
		}
	})

	pool := x509.NewCertPool()
	pool.AddCert(s.ca)
	s.http = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
	s.initialise()
	s.Do("POST", "sys/audit/file", Args{"type": "file", "options": Args{"file_path": s.audit()}})
	return s
}

func freeAddress(h lab.Host) string {
	h.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		h.Fatalf("%v", err)
	}
	defer l.Close()
	return l.Addr().String()
}

// run starts the process, which ends with the test and with the test binary,
// however that ends.
func (s *Server) run(log, path string, args ...string) {
	s.host.Helper()
	out, err := os.Create(log)
	if err != nil {
		s.host.Fatalf("%v", err)
	}
	defer out.Close()
	cmd := exec.Command(path, args...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = s.Dir, []string{"HOME=" + s.Dir}, out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	started, ended := make(chan error), make(chan struct{})
	go func() {
		defer close(ended)
		// Pdeathsig is sent when the thread that forked ends.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		s.host.Fatalf("starting vault: %v", err)
	}
	s.host.Cleanup(func() {
		cmd.Process.Kill()
		<-ended
	})
}

func (s *Server) initialise() {
	s.host.Helper()
	var err error
	for range 600 {
		var out Args
		if _, err = s.try("POST", "sys/init", Args{"secret_shares": 1, "secret_threshold": 1}, &out); err == nil {
			s.root, s.unseal = out["root_token"].(string), out["keys"].([]any)[0].(string)
			s.Unseal()
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	s.host.Fatalf("initialising vault: %v", err)
}

// Unseal unseals the server and waits until it is active.
func (s *Server) Unseal() {
	s.host.Helper()
	s.Do("POST", "sys/unseal", Args{"key": s.unseal})
	var err error
	for range 200 {
		if _, err = s.try("GET", "sys/health", nil, nil); err == nil {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	s.host.Fatalf("unsealing vault: %v", err)
}

// Seal seals the server: it answers nothing but 503.
func (s *Server) Seal() {
	s.host.Helper()
	s.Do("POST", "sys/seal", Args{})
}

// Args are the arguments of an API call, or what it answered.
type Args = map[string]any

// Do calls the API as root and returns the data of the answer, or its auth.
func (s *Server) Do(method, path string, in Args) Args {
	s.host.Helper()
	var out struct{ Data, Auth Args }
	if code, err := s.try(method, path, in, &out); err != nil {
		s.host.Fatalf("%s %s: %d, %v", method, path, code, err)
	}
	if out.Auth != nil {
		return out.Auth
	}
	return out.Data
}

func (s *Server) try(method, path string, in Args, out any) (int, error) {
	var body []byte
	if in != nil {
		body, _ = json.Marshal(in)
	}
	req, err := http.NewRequestWithContext(s.host.Context(), method, s.URL+"/v1/"+path, bytes.NewReader(body))
	if err != nil {
		return 0, err
	}
	req.Header.Set("X-Vault-Token", s.root)
	resp, err := s.http.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode >= 300 {
		err = errors.New(string(text))
	}
	if err == nil && out != nil && len(text) > 0 {
		err = json.Unmarshal(text, out)
	}
	return resp.StatusCode, err
}

// Write puts a file that only we can read into Dir, by a rename, as agents do.
func (s *Server) Write(name, content string) string {
	s.host.Helper()
	path := filepath.Join(s.Dir, name)
	if err := os.WriteFile(path+".new", []byte(content), 0o600); err != nil {
		s.host.Fatalf("%v", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		s.host.Fatalf("%v", err)
	}
	return path
}

func (s *Server) audit() string { return filepath.Join(s.Dir, "audit.log") }

// Audited returns the IDs of the requests to path so far, in order.
func (s *Server) Audited(path string) []string {
	s.host.Helper()
	text, err := os.ReadFile(s.audit())
	if err != nil {
		s.host.Fatalf("%v", err)
	}
	var ids []string
	for line := range strings.Lines(string(text)) {
		var entry struct {
			Type    string
			Request struct{ ID, Path string }
		}
		if json.Unmarshal([]byte(line), &entry) == nil && entry.Type == "response" && entry.Request.Path == path {
			ids = append(ids, entry.Request.ID)
		}
	}
	return ids
}

func (s *Server) authority() {
	s.host.Helper()
	s.caKey = newKey(s.host)
	s.ca = &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, s.ca, s.ca, s.caKey.Public(), s.caKey)
	if err == nil {
		s.ca, err = x509.ParseCertificate(der)
	}
	if err != nil {
		s.host.Fatalf("%v", err)
	}
	s.CA = s.Write("ca.pem", block("CERTIFICATE", der))
}

// Certificate issues a certificate of the server's authority, for a server at
// address or for a client, and returns the paths of it and of its key.
func (s *Server) Certificate(name, address string, until time.Time) (cert, key string) {
	s.host.Helper()
	private := newKey(s.host)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: until,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if ip := net.ParseIP(address); ip != nil {
		template.IPAddresses = []net.IP{ip}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, s.ca, private.Public(), s.caKey)
	if err != nil {
		s.host.Fatalf("%v", err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		s.host.Fatalf("%v", err)
	}
	return s.Write(name+".pem", block("CERTIFICATE", der)), s.Write(name+"-key.pem", block("PRIVATE KEY", pkcs8))
}

func newKey(h lab.Host) *ecdsa.PrivateKey {
	h.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		h.Fatalf("%v", err)
	}
	return key
}

func block(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

package lab

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/kube-kek/kube-kek/e2e/internal/parts"
)

// token is that of the one user, who is cluster-admin, of a server that only
// this machine can reach and that holds nothing of anybody's.
const token = "lab"

type apiserverFiles struct {
	once             sync.Once
	tokens, accounts string
}

// APIServer is a real kube-apiserver. Several may share the lab's etcd.
type APIServer struct {
	Client *kubernetes.Clientset

	lab     *Lab
	name    string
	args    []string
	address string
	proc    *Process
	http    *http.Client
}

// ProviderName is the plugin's name in the EncryptionConfiguration, which etcd
// holds with each record.
const ProviderName = "kube-kek"

// Encryption returns an EncryptionConfiguration that puts Secrets under the
// plugin at a socket, as kube-apiserver reads it.
func Encryption(provider, socket string) string {
	return fmt.Sprintf(`apiVersion: apiserver.config.k8s.io/v1
kind: EncryptionConfiguration
resources:
- resources: [secrets]
  providers:
  - kms: {apiVersion: v2, name: %s, endpoint: "unix://%s", timeout: 3s}
`, provider, socket)
}

// StartAPIServer starts a kube-apiserver whose Secrets are under the plugin, and
// waits until it is ready. More flags override those of the lab.
func (l *Lab) StartAPIServer(name string, p *Plugin, flags ...string) *APIServer {
	l.Helper()
	s := l.NewAPIServer(name, p, flags...)
	s.Start()
	s.WaitReady()
	return s
}

// NewAPIServer prepares a kube-apiserver that is not started.
func (l *Lab) NewAPIServer(name string, p *Plugin, flags ...string) *APIServer {
	l.Helper()
	f := &l.apiserver
	f.once.Do(func() {
		f.tokens = l.Write("tokens.csv", []byte(token+",admin,admin,system:masters\n"))
		f.accounts = l.Write("service-accounts.pem", serviceAccountKey(l))
	})
	port := l.reservePort()
	s := &APIServer{lab: l, name: name, address: address(port)}
	s.args = append([]string{
		"--etcd-servers=" + l.Etcd.url,
		"--bind-address=" + loopback, fmt.Sprintf("--secure-port=%d", port), "--permit-port-sharing=true",
		"--cert-dir=" + filepath.Join(l.Dir, name+"-certs"),
		"--endpoint-reconciler-type=none", "--service-cluster-ip-range=10.0.0.0/24",
		"--token-auth-file=" + f.tokens, "--authorization-mode=RBAC",
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + f.accounts, "--service-account-signing-key-file=" + f.accounts,
		"--disable-admission-plugins=ServiceAccount",
		"--encryption-provider-config=" + l.Write(name+"-encryption.yaml", []byte(Encryption(ProviderName, p.Socket))),
		"--encryption-provider-config-automatic-reload=true",
		"-v=2",
	}, flags...)
	config := &rest.Config{
		Host: "https://" + s.address, BearerToken: token, QPS: -1, Timeout: 30 * time.Second,
		// The certificate is made anew by each apiserver, for itself.
		TLSClientConfig: rest.TLSClientConfig{Insecure: true},
	}
	var err error
	if s.http, err = rest.HTTPClientFor(config); err != nil {
		l.Fatalf("%v", err)
	}
	if s.Client, err = kubernetes.NewForConfigAndClient(config, s.http); err != nil {
		l.Fatalf("%v", err)
	}
	return s
}

func serviceAccountKey(l *Lab) []byte {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		l.Fatalf("%v", err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		l.Fatalf("%v", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
}

// Start starts the process and does not wait.
func (s *APIServer) Start() {
	s.lab.Helper()
	s.proc = s.lab.run(s.name, parts.APIServer, nil, s.args...)
}

// Kill ends the process as a crash would.
func (s *APIServer) Kill() { s.proc.Kill() }

// Restart kills the apiserver, starts it again and waits until it is ready. It
// returns how long that took.
func (s *APIServer) Restart() time.Duration {
	s.lab.Helper()
	start := time.Now()
	s.Kill()
	s.Start()
	s.WaitReady()
	return time.Since(start)
}

// WaitReady waits until /readyz says so; if it does not, the test ends with the
// checks that fail.
func (s *APIServer) WaitReady() {
	s.lab.Helper()
	s.lab.waitFor(s.name+" to be ready", s.proc, 2*time.Minute, s.Ready)
}

// Ready asks /readyz, which also makes the apiserver ask the plugin for its
// Status if it has not done so in the last 20 seconds. The error names the
// checks that fail.
func (s *APIServer) Ready() error {
	ctx, cancel := context.WithTimeout(s.lab.Context(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+s.address+"/readyz?verbose", nil)
	if err != nil {
		return err
	}
	resp, err := s.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode == http.StatusOK {
		return err
	}
	var failing []string
	for line := range strings.Lines(string(body)) {
		if strings.HasPrefix(line, "[-]") {
			failing = append(failing, strings.TrimSpace(line))
		}
	}
	if failing == nil {
		return fmt.Errorf("/readyz: %s: %s", resp.Status, body)
	}
	return NotReady(failing)
}

// NotReady is an apiserver that answers and is not ready: the checks that fail.
type NotReady []string

func (e NotReady) Error() string { return strings.Join(e, "; ") }

// FailsOnKMS reports whether err is of an apiserver that misses its KMS plugin.
func FailsOnKMS(err error) bool {
	var e NotReady
	return errors.As(err, &e) && slices.ContainsFunc(e, func(check string) bool { return strings.HasPrefix(check, "[-]kms-provider") })
}

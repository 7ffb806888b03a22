// Package vault is a client of one HashiCorp Vault or OpenBao server, as one
// caller: it logs in when a call needs it, renews its token before it ends, and
// tells what the server's refusals mean. It knows no secrets engine.
//
// It is made on OpenBao's client, which speaks to both, reads VAULT_* and BAO_*
// variables alike, and links a little less than Vault's own.
//
// A login makes one request, and so does a renewal, once two thirds of the
// token's life have passed. Both are done within the call that finds them due:
// there is no work in the background. So a token that lives for less than the
// time between two calls is got anew for each.
package vault

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/kube-kek/kube-kek/kek"
	"github.com/openbao/openbao/api/v2"
)

// Config describes a [Client]. What is left empty, the variables of Vault's and
// OpenBao's own tools may say: VAULT_ADDR, VAULT_NAMESPACE, VAULT_CACERT,
// VAULT_CLIENT_CERT, VAULT_CLIENT_KEY, VAULT_TLS_SERVER_NAME, VAULT_PROXY_ADDR
// and more. BAO_* goes before VAULT_*. Proxies are the environment's.
type Config struct {
	// Address is the server's URL: https, or http on the loopback interface, or
	// unix:///PATH.
	Address string

	// Namespace is for servers that have such. Logins are made in it too.
	Namespace string

	// CABundle is the path of a PEM file. Its certificates alone are trusted. It
	// is read once, by New.
	CABundle string

	// ServerName is the name that the server's certificate must bear, where it is
	// not the address's.
	ServerName string

	// ClientCert and ClientKey are paths of PEM files, which are read for each
	// new connection. Only owner and group may read the key.
	ClientCert, ClientKey string

	// Auth says how to log in.
	Auth Auth
}

// Auth says how to log in. Files are read again for each login.
type Auth struct {
	// Method is Kubernetes, JWT, AppRole, Cert or Token. Empty is Token.
	Method string

	// Mount is the method's path below auth/, its name if empty. Token has none.
	Mount string

	// Role is what Kubernetes and JWT log in as. Cert may have one.
	Role string

	// RoleID is an AppRole's. SecretIDFile holds its secret ID, if it has one;
	// only owner and group may read that file.
	RoleID, SecretIDFile string

	// TokenFile holds the JWT, for Kubernetes (the pod's own if empty) and for
	// JWT. For Token it holds a token of Vault, such as the sink of a Vault Agent,
	// which only owner and group may read; without it, VAULT_TOKEN is used.
	TokenFile string

	token string // VAULT_TOKEN
}

// The methods.
const (
	Kubernetes = "kubernetes"
	JWT        = "jwt"
	AppRole    = "approle"
	Cert       = "cert"
	Token      = "token"
)

// requestTimeout ends requests that no caller's deadline ends.
const requestTimeout = 5 * time.Second

// New returns a client. It asks nothing of the network.
func New(c Config) (*Client, error) {
	conf := api.DefaultConfig()
	if conf.Error != nil {
		return nil, invalid("reading the environment: %w", conf.Error)
	}
	if c.Address != "" {
		conf.Address, conf.AgentAddress = c.Address, ""
	}
	if err := checkAddress(cmp.Or(conf.AgentAddress, conf.Address)); err != nil {
		return nil, err
	}
	cert := cmp.Or(c.ClientCert, api.ReadBaoVariable(api.EnvVaultClientCert))
	key := cmp.Or(c.ClientKey, api.ReadBaoVariable(api.EnvVaultClientKey))
	auth, err := c.Auth.complete(cert)
	if err != nil {
		return nil, err
	}
	if err := conf.ConfigureTLS(&api.TLSConfig{CACert: c.CABundle, TLSServerName: c.ServerName}); err != nil {
		return nil, invalid("CA bundle: %w", err)
	}
	transport := conf.HttpClient.Transport.(*http.Transport)
	switch {
	case transport.TLSClientConfig.InsecureSkipVerify:
		return nil, invalid("VAULT_SKIP_VERIFY is set, and keys would go to whoever answers: give the CA bundle instead")
	case (cert == "") != (key == ""):
		return nil, invalid("a client certificate and its key must be given together")
	case cert != "":
		transport.TLSClientConfig.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return keyPair(cert, key)
		}
	}
	// HTTP/1.1 alone: it closes a connection that swallowed a request, where
	// HTTP/2 would go on using that for many minutes.
	transport.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
	transport.TLSClientConfig.NextProtos, transport.ForceAttemptHTTP2 = nil, false
	transport.MaxIdleConnsPerHost = 64

	conf.MaxRetries = 0 // kek.Retry does it, within the caller's time
	conf.CheckRetry = func(context.Context, *http.Response, error) (bool, error) { return false, nil }
	conf.Timeout, conf.HttpClient.Timeout = 0, requestTimeout // the first would leave a timer behind each request
	a, err := api.NewClient(conf)
	if err != nil {
		return nil, invalid("%w", err)
	}
	conf.HttpClient.Transport = bounded{transport}
	a.ClearToken() // each request has its own
	a.SetNamespace(strings.Trim(cmp.Or(c.Namespace, a.Namespace()), "/"))
	a.SetWrappingLookupFunc(func(string, string) string { return "" }) // whatever VAULT_WRAP_TTL says
	return &Client{api: a, http: conf.HttpClient, auth: auth}, nil
}

// complete fills in what is implied, and tells what is missing.
func (a Auth) complete(cert string) (Auth, error) {
	a.Method = cmp.Or(a.Method, Token)
	a.Mount = strings.Trim(cmp.Or(a.Mount, a.Method), "/")
	if a.Method == Kubernetes {
		a.TokenFile = cmp.Or(a.TokenFile, "/var/run/secrets/kubernetes.io/serviceaccount/token")
	}
	if a.Method == Token && a.TokenFile == "" {
		a.token = api.ReadBaoVariable(api.EnvVaultToken)
	}
	needs, ok := map[string][]struct{ what, is string }{
		Kubernetes: {{"a role", a.Role}},
		JWT:        {{"a role", a.Role}, {"a token file", a.TokenFile}},
		AppRole:    {{"a role ID", a.RoleID}},
		Cert:       {{"a client certificate", cert}},
		Token:      {{"a token file or VAULT_TOKEN; better log in by kubernetes, jwt, approle or cert", a.TokenFile + a.token}},
	}[a.Method]
	if !ok {
		return a, invalid("%q is no way to log in: there are kubernetes, jwt, approle, cert and token", a.Method)
	}
	for _, n := range needs {
		if n.is == "" {
			return a, invalid("logging in by %s needs %s", a.Method, n.what)
		}
	}
	return a, nil
}

// checkAddress refuses to send plaintext keys over a network in clear.
func checkAddress(address string) error {
	u, err := url.Parse(address)
	switch {
	case err == nil && u.Scheme == "unix" && u.Host == "" && u.Path != "":
		return nil
	case err != nil || u.Host == "":
		return invalid("the address is not a URL like https://HOST:8200")
	case u.User != nil:
		return invalid("the address of %s holds credentials: Vault knows no such thing", u.Host)
	case u.Scheme == "https", u.Scheme == "http" && (u.Hostname() == "localhost" || net.ParseIP(u.Hostname()).IsLoopback()):
		return nil
	}
	return invalid("the address %s://%s must be https: keys would cross the network in clear", u.Scheme, u.Host)
}

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %w", kek.Invalid, fmt.Errorf(format, args...))
}

// bounded cuts answers at a size that none of Vault's has.
type bounded struct{ *http.Transport }

func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := b.Transport.RoundTrip(r)
	if err == nil {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(resp.Body, 1<<20), resp.Body}
	}
	return resp, err
}

package azurekv

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azkeys"
	"github.com/kube-kek/kube-kek/kek"
)

// Config describes a [Provider]. All but Key may be left empty.
type Config struct {
	// Key is "VAULT.vault.azure.net/keys/NAME": what follows "azurekms://" in a
	// URI. A Managed HSM's host and those of the sovereign clouds are known too,
	// and "keys/" may be missing, as cosign spells it. It names no version.
	Key string

	// Endpoint is an https URL that answers in place of https://VAULT.vault.azure.net,
	// e.g. of a private cloud. Tokens for other resources than the key's own
	// (https://vault.azure.net) are not sent there.
	Endpoint string

	// CABundle is the path of a PEM file. Its certificates alone are trusted, by
	// the vault's client and by that of Microsoft Entra ID. It is read once, by New.
	CABundle string

	// Credential says how to get tokens: one of the Credential constants. If
	// empty it is the first of these that is set up, by TokenFile,
	// CertificateFile and SecretFile here, or else by the environment variables
	// of Azure's SDKs, or else the managed identity of the machine. There is only
	// ever one: an outage does not make us another principal.
	Credential string

	// TenantID and ClientID are the principal's. AZURE_TENANT_ID and
	// AZURE_CLIENT_ID are taken if they are empty. A managed identity has no
	// tenant to name, and needs its client ID only where it is user-assigned.
	TenantID, ClientID string

	// TokenFile is the path of a Kubernetes service account token, which is read
	// for each new access token, as are the two below. AZURE_FEDERATED_TOKEN_FILE
	// is taken if it is empty.
	TokenFile string

	// CertificateFile is the path of a certificate with its private key, in PEM
	// or PKCS #12. AZURE_CLIENT_CERTIFICATE_PATH is taken if it is empty, and
	// AZURE_CLIENT_CERTIFICATE_PASSWORD.
	CertificateFile string

	// SecretFile is the path of a client secret; AZURE_CLIENT_SECRET is taken if
	// it is empty. A secret is valid for months: Facts warns of it.
	SecretFile string

	// AuthorityHost is the URL of Microsoft Entra ID. If empty it is
	// AZURE_AUTHORITY_HOST, or that of the cloud that the key is in.
	AuthorityHost string
}

// key is a key taken apart.
type key struct {
	id, host, name string
	scope          string // of the tokens, e.g. "https://vault.azure.net/.default"
	hsm            bool
	cloud          cloud.Configuration
}

var (
	clouds = []struct {
		domain string
		cloud  cloud.Configuration
	}{
		{"azure.net", cloud.AzurePublic},
		{"azure.cn", cloud.AzureChina},
		{"usgovcloudapi.net", cloud.AzureGovernment},
	}
	hostPattern = regexp.MustCompile(`^[a-z][a-z0-9-]{1,22}[a-z0-9]\.(vault|managedhsm)\.(.+)$`)
	namePattern = regexp.MustCompile(`^[0-9A-Za-z-]{1,127}$`)
)

// maxID is what a key ID of 200 bytes has room for, with a version, a
// fingerprint and an epoch.
const maxID = 200 - len(Scheme+":") - len("@") - 32 - len("+12345678") - len("~999")

// ID returns the [kek.KeyRef] ID of a key that is written like Config.Key.
func ID(key string) (string, error) {
	k, err := parseKey(key)
	return k.id, err
}

func parseKey(s string) (key, error) {
	host, name, _ := strings.Cut(s, "/")
	host, name = strings.ToLower(host), strings.TrimPrefix(name, "keys/")
	parts := hostPattern.FindStringSubmatch(host)
	if parts == nil || !namePattern.MatchString(name) {
		return key{}, invalid("key %q is not VAULT.vault.azure.net/keys/NAME or HSM.managedhsm.azure.net/keys/NAME, without a version", s)
	}
	k := key{id: host + "/keys/" + name, host: host, name: name, hsm: parts[1] == "managedhsm"}
	if len(k.id) > maxID {
		return key{}, invalid("key %q: key IDs have room for %d characters of it, and these are %d", s, maxID, len(k.id))
	}
	k.scope = "https://" + parts[1] + "." + parts[2] + "/.default"
	for _, c := range clouds {
		if c.domain == parts[2] {
			k.cloud = c.cloud
			return k, nil
		}
	}
	return key{}, invalid("key %q: %s is no domain of Azure", s, parts[2])
}

// permission names what an operation needs, in the words that the home's
// administrator knows.
func (k key) permission(policy, action string) string {
	if k.hsm {
		return "Microsoft.KeyVault/managedHsm/keys/" + action + "/action"
	}
	if action != "read" {
		action += "/action"
	}
	return policy + ", with RBAC Microsoft.KeyVault/vaults/keys/" + action
}

// New returns a provider for the key. It reads files and the environment, and
// asks nothing of the network: whether the key exists and may be used, Current
// tells.
func New(_ context.Context, c Config) (*Provider, error) {
	k, err := parseKey(c.Key)
	if err != nil {
		return nil, err
	}
	if err := checkURL("endpoint", c.Endpoint, false); err != nil {
		return nil, err
	}
	client, err := newClient(c.CABundle)
	if err != nil {
		return nil, err
	}
	options := azcore.ClientOptions{
		// kek.Retry does it, within the caller's time. The SDK's own pauses would
		// outlast that time and hide the cause.
		Retry:     policy.RetryOptions{MaxRetries: -1},
		Telemetry: policy.TelemetryOptions{ApplicationID: "kube-kek"},
		Transport: client,
	}
	credential, note, err := newCredential(c, k, options)
	if err != nil {
		return nil, err
	}
	options.PerRetryPolicies = []policy.Policy{recorder{}}
	keys, err := azkeys.NewClient(cmp.Or(c.Endpoint, "https://"+k.host), credential, &azkeys.ClientOptions{
		ClientOptions: options,
		// It compares with the host that is asked, which is another one here. The
		// credential compares with the key's own.
		DisableChallengeResourceVerification: c.Endpoint != "",
	})
	if err != nil {
		return nil, invalid("making the client: %w", err)
	}
	return &Provider{key: k, keys: keys, credential: credential, http: client, staticNote: note}, nil
}

// requestTimeout ends requests that no caller's deadline ends: a token is
// fetched once for all who wait.
const requestTimeout = 10 * time.Second

func newClient(caBundle string) (*http.Client, error) {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.MaxIdleConnsPerHost = 10
	t.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	t.HTTP2 = &http.HTTP2Config{SendPingTimeout: 10 * time.Second, PingTimeout: 5 * time.Second}
	t.Proxy = func(r *http.Request) (*url.URL, error) {
		if r.URL.Host == metadataHost {
			return nil, nil // answers with a token, in clear
		}
		return http.ProxyFromEnvironment(r)
	}
	if caBundle != "" {
		pem, err := os.ReadFile(caBundle)
		if err != nil {
			return nil, invalid("reading the CA bundle: %w", err)
		}
		t.TLSClientConfig.RootCAs = x509.NewCertPool()
		if !t.TLSClientConfig.RootCAs.AppendCertsFromPEM(pem) {
			return nil, invalid("CA bundle %s: no PEM certificate in it", caBundle)
		}
	}
	return &http.Client{
		Transport:     t,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Timeout:       requestTimeout,
	}, nil
}

// checkURL refuses a URL over which keys or tokens would cross a network in clear.
func checkURL(what, s string, loopback bool) error {
	if s == "" {
		return nil
	}
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return invalid("the %s is not a URL like https://HOST[:PORT]", what)
	}
	ip := net.ParseIP(u.Hostname())
	if u.Scheme != "https" && (u.Scheme != "http" || !loopback || ip == nil || !ip.IsLoopback()) {
		return invalid("the %s %s://%s must be https", what, u.Scheme, u.Host)
	}
	return nil
}

func invalid(format string, args ...any) error {
	return fmt.Errorf("Azure Key Vault: %w: %w", kek.Invalid, fmt.Errorf(format, args...))
}

// recorder tells the request ID of every answer, good or bad.
type recorder struct{}

func (recorder) Do(req *policy.Request) (*http.Response, error) {
	resp, err := req.Next()
	if err == nil {
		kek.RecordCall(req.Raw().Context(), resp.Header.Get("X-Ms-Request-Id"))
	}
	return resp, err
}

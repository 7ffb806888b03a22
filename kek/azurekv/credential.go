package azurekv

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/kube-kek/kube-kek/kek"
)

// The ways to get tokens, in the order in which they are looked for.
const (
	CredentialWorkloadIdentity = "workload-identity"
	CredentialCertificate      = "certificate"
	CredentialSecret           = "secret"
	CredentialManagedIdentity  = "managed-identity"
)

// metadataHost is where machines of Azure find their managed identity.
const metadataHost = "169.254.169.254"

// credential gets tokens for one resource alone. Each is a new one: the SDK's
// client keeps it as long as it is good, so that a token which the vault has
// refused is not handed out again from another cache.
type credential struct {
	name  string // one of the constants
	scope string
	fresh func() (azcore.TokenCredential, error)
}

func newCredential(c Config, k key, o azcore.ClientOptions) (*credential, string, error) {
	name := c.set("")
	c.TenantID = cmp.Or(c.TenantID, os.Getenv("AZURE_TENANT_ID"))
	c.ClientID = cmp.Or(c.ClientID, os.Getenv("AZURE_CLIENT_ID"))
	c.TokenFile = cmp.Or(c.TokenFile, os.Getenv("AZURE_FEDERATED_TOKEN_FILE"))
	c.CertificateFile = cmp.Or(c.CertificateFile, os.Getenv("AZURE_CLIENT_CERTIFICATE_PATH"))
	c.AuthorityHost = cmp.Or(c.AuthorityHost, os.Getenv("AZURE_AUTHORITY_HOST"), k.cloud.ActiveDirectoryAuthorityHost)
	secret := os.Getenv("AZURE_CLIENT_SECRET")
	name = cmp.Or(name, c.set(secret), CredentialManagedIdentity)

	metadata := os.Getenv("AZURE_POD_IDENTITY_AUTHORITY_HOST")
	if err := errors.Join(checkURL("authority host", c.AuthorityHost, false), checkURL("AZURE_POD_IDENTITY_AUTHORITY_HOST", metadata, true)); err != nil {
		return nil, "", err
	}
	o.Cloud = cloud.Configuration{ActiveDirectoryAuthorityHost: c.AuthorityHost}
	o.PerCallPolicies = []policy.Policy{witnessPolicy{metadata}}
	cred, note := &credential{name: name, scope: k.scope}, ""
	switch name {
	case CredentialWorkloadIdentity:
		cred.fresh = func() (azcore.TokenCredential, error) {
			return azidentity.NewWorkloadIdentityCredential(&azidentity.WorkloadIdentityCredentialOptions{
				ClientOptions: o, DisableInstanceDiscovery: true, TenantID: c.TenantID, ClientID: c.ClientID, TokenFilePath: c.TokenFile,
			})
		}
	case CredentialCertificate:
		cred.fresh = func() (azcore.TokenCredential, error) {
			pem, err := readSecret(c.CertificateFile)
			if err != nil {
				return nil, err
			}
			certs, key, err := azidentity.ParseCertificates(pem, []byte(os.Getenv("AZURE_CLIENT_CERTIFICATE_PASSWORD")))
			if err != nil {
				return nil, fmt.Errorf("reading %s: %w", c.CertificateFile, err)
			}
			return azidentity.NewClientCertificateCredential(c.TenantID, c.ClientID, certs, key,
				&azidentity.ClientCertificateCredentialOptions{ClientOptions: o, DisableInstanceDiscovery: true})
		}
	case CredentialSecret:
		note = "The Azure credential is a client secret, valid until it ends or someone revokes it. Use a workload identity or a managed identity."
		cred.fresh = func() (azcore.TokenCredential, error) {
			value := secret
			if c.SecretFile != "" {
				b, err := readSecret(c.SecretFile)
				if err != nil {
					return nil, err
				}
				value = strings.TrimSpace(string(b))
			}
			return azidentity.NewClientSecretCredential(c.TenantID, c.ClientID, value,
				&azidentity.ClientSecretCredentialOptions{ClientOptions: o, DisableInstanceDiscovery: true})
		}
	case CredentialManagedIdentity:
		cred.fresh = func() (azcore.TokenCredential, error) {
			mi := &azidentity.ManagedIdentityCredentialOptions{ClientOptions: o}
			if c.ClientID != "" {
				mi.ID = azidentity.ClientID(c.ClientID)
			}
			return azidentity.NewManagedIdentityCredential(mi)
		}
	default:
		return nil, "", invalid("credential %q is none of %s, %s, %s, %s", name,
			CredentialWorkloadIdentity, CredentialCertificate, CredentialSecret, CredentialManagedIdentity)
	}
	if name != CredentialManagedIdentity && (c.TenantID == "" || c.ClientID == "") {
		return nil, "", invalid("credential %s: a tenant ID and a client ID are needed", name)
	}
	if _, err := cred.fresh(); err != nil {
		return nil, "", invalid("credential %s: %w", name, err)
	}
	return cred, note, nil
}

// set returns the credential that is named or set up, empty if none is.
func (c Config) set(secret string) string {
	switch {
	case c.Credential != "":
		return c.Credential
	case c.TokenFile != "":
		return CredentialWorkloadIdentity
	case c.CertificateFile != "":
		return CredentialCertificate
	case c.SecretFile != "" || secret != "":
		return CredentialSecret
	}
	return ""
}

// readSecret reads a file that others must not.
func readSecret(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o007 != 0 {
		return nil, fmt.Errorf("%s holds a secret and everyone may open it: chmod o-rwx", path)
	}
	return os.ReadFile(path)
}

// GetToken implements [azcore.TokenCredential]. A fetch goes on when the caller
// leaves, so that a slow authority serves the next one.
func (c *credential) GetToken(ctx context.Context, o policy.TokenRequestOptions) (azcore.AccessToken, error) {
	if len(o.Scopes) != 1 || o.Scopes[0] != c.scope {
		demand := fmt.Errorf("the endpoint demands one for %q, and the key's own is %s", o.Scopes, c.scope)
		return azcore.AccessToken{}, &credentialError{kek.Unauthenticated, 0, c.name, demand}
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), requestTimeout)
	defer cancel()
	var w witness
	cred, err := c.fresh()
	if err != nil {
		return azcore.AccessToken{}, &credentialError{kek.Unauthenticated, 0, c.name, err}
	}
	if c.name == CredentialManagedIdentity {
		o.Claims = cmp.Or(o.Claims, "{}") // any make the SDK pass over its process-wide cache
	}
	token, err := cred.GetToken(context.WithValue(ctx, witnessKey{}, &w), o)
	if err != nil {
		return token, w.judge(c.name, err)
	}
	return token, nil
}

// identity tells whom a new token is for: what Key Vault's log has of a caller.
func (c *credential) identity(ctx context.Context) (string, error) {
	token, err := c.GetToken(ctx, policy.TokenRequestOptions{Scopes: []string{c.scope}})
	if err != nil {
		return "", err
	}
	var claims struct {
		AppID    string `json:"appid"`
		Party    string `json:"azp"` // appid's name in tokens of version 2
		Object   string `json:"oid"`
		Resource string `json:"xms_mirid"` // of a managed identity
	}
	// Nothing is decided by them: the signature is the vault's to verify.
	parts := strings.Split(token.Token, ".")
	if len(parts) == 3 {
		if b, err := base64.RawURLEncoding.DecodeString(parts[1]); err == nil {
			_ = json.Unmarshal(b, &claims)
		}
	}
	var who []string
	for _, p := range [][2]string{{"appid", cmp.Or(claims.AppID, claims.Party)}, {"oid", claims.Object}, {"xms_mirid", claims.Resource}} {
		if p[1] != "" {
			who = append(who, p[0]+"="+p[1])
		}
	}
	if who == nil {
		return "", errors.New("an access token that names no one")
	}
	return strings.Join(who, ";"), nil
}

// witness is what the last request for a token came to. The SDK's errors keep
// only its text.
type witness struct {
	err  error
	resp *http.Response
}

type witnessKey struct{}

// witnessPolicy fills the witness in the context, and sends requests for a
// managed identity to another host where the environment says so.
type witnessPolicy struct{ metadata string }

func (p witnessPolicy) Do(req *policy.Request) (*http.Response, error) {
	if u := req.Raw().URL; p.metadata != "" && u.Host == metadataHost {
		to, _ := url.Parse(p.metadata) // New has checked it
		u.Scheme, u.Host = to.Scheme, to.Host
		req.Raw().Host = to.Host
	}
	resp, err := req.Next()
	if w, ok := req.Raw().Context().Value(witnessKey{}).(*witness); ok {
		w.resp, w.err = resp, err
	}
	return resp, err
}

// credentialError is the failure to get a token: not the vault's word on the key.
type credentialError struct {
	kind       kek.Kind
	retryAfter time.Duration
	name       string
	cause      error
}

func (e *credentialError) Error() string {
	return fmt.Sprintf("getting an access token by %s: %v", e.name, e.cause)
}

func (e *credentialError) Unwrap() error { return e.cause }

func (w *witness) judge(name string, err error) error {
	e := &credentialError{kind: kek.Unauthenticated, name: name, cause: errors.New(firstLine(err.Error()))}
	switch {
	case w.err != nil:
		e.kind, e.cause = kek.Unavailable, unanswered(w.err)
		if name == CredentialManagedIdentity {
			e.cause = fmt.Errorf("%w: only machines of Azure have one; elsewhere set up another credential", e.cause)
		}
	case w.resp != nil && w.resp.StatusCode >= http.StatusBadRequest:
		var body struct {
			Code string `json:"error"`
			Text string `json:"error_description"`
		}
		b, _ := runtime.Payload(w.resp)
		_ = json.Unmarshal(b, &body) // one that is not JSON is not quoted
		e.cause = fmt.Errorf("status %d %s", w.resp.StatusCode, firstLine(cmp.Or(body.Text, body.Code)))
		switch status := w.resp.StatusCode; {
		case status == http.StatusTooManyRequests:
			e.kind, e.retryAfter = kek.Throttled, retryAfter(w.resp)
		// The metadata service says 404 and 410 while it is being updated.
		case status >= http.StatusInternalServerError, status == http.StatusNotFound, status == http.StatusGone:
			e.kind = kek.Unavailable
		}
	}
	return e
}

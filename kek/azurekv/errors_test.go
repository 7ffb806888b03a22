package azurekv_test

import (
	"crypto/tls"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/kube-kek/kube-kek/kek"
	"github.com/kube-kek/kube-kek/kek/azurekv"
	"github.com/kube-kek/kube-kek/kek/azurekv/azurekvtest"
)

func TestPermissionsAreNamed(t *testing.T) {
	calls := []struct {
		op     kek.Op
		policy string
		rbac   string
		hsm    string
	}{
		{kek.OpCurrent, "keys/get", "Microsoft.KeyVault/vaults/keys/read", "Microsoft.KeyVault/managedHsm/keys/read/action"},
		{kek.OpWrap, "keys/wrapKey", "Microsoft.KeyVault/vaults/keys/wrap/action", "Microsoft.KeyVault/managedHsm/keys/wrap/action"},
		{kek.OpUnwrap, "keys/unwrapKey", "Microsoft.KeyVault/vaults/keys/unwrap/action", "Microsoft.KeyVault/managedHsm/keys/unwrap/action"},
	}
	for _, host := range []string{vaultHost, hsmHost} {
		for _, rbac := range []bool{false, true} {
			l := newLab(t, azurekvtest.Config{Host: host})
			w := mustWrap(t, l.provider(t), newKey())
			for _, c := range calls {
				me := l.principal
				me.RBAC = rbac
				for _, other := range calls {
					if other != c {
						me.Allow = append(me.Allow[:len(me.Allow):len(me.Allow)], other.policy)
					}
				}
				me.Allow = me.Allow[len(l.principal.Allow):]
				l.AddPrincipal(me)
				p := l.provider(t)
				var err error
				switch c.op {
				case kek.OpCurrent:
					_, err = p.Current(t.Context())
				case kek.OpWrap:
					_, err = p.Wrap(t.Context(), newKey())
				case kek.OpUnwrap:
					_, err = p.Unwrap(t.Context(), w)
				}
				want := c.policy + ", with RBAC " + c.rbac
				if host == hsmHost {
					want = c.hsm
				}
				e, ok := err.(*kek.Error)
				if !ok || e.Kind != kek.Denied || e.Permission != want || strings.Contains(e.Error(), "\n") {
					t.Errorf("%s without %s on %s: %v, want %v with permission %q", c.op, c.policy, host, err, kek.Denied, want)
				}
			}
		}
	}
}

func TestAnswers(t *testing.T) {
	l := newLab(t, azurekvtest.Config{})
	p := l.provider(t)
	w := mustWrap(t, p, newKey())
	const same = -1
	for _, test := range []struct {
		name   string
		fault  azurekvtest.Fault
		want   kek.Kind
		unwrap kek.Kind // where it differs
	}{
		{"a bad parameter", azurekvtest.Fault{Status: 400, Code: "BadParameter"}, kek.Invalid, kek.Corrupt},
		{"no permission", azurekvtest.Fault{Status: 403, Code: "Forbidden", Inner: "ForbiddenByPolicy"}, kek.Denied, same},
		{"no permission, without an inner code", azurekvtest.Fault{Status: 403, Code: "Forbidden"}, kek.Denied, same},
		{"the vault's firewall", azurekvtest.Fault{Status: 403, Code: "Forbidden", Inner: "ForbiddenByFirewall"}, kek.Unavailable, same},
		{"a private vault from outside", azurekvtest.Fault{Status: 403, Code: "Forbidden", Inner: "ForbiddenByConnection"}, kek.Unavailable, same},
		{"a proxy that says 403", azurekvtest.Fault{Status: 403, Body: []byte("<html>")}, kek.Unavailable, same},
		{"a proxy that says 404", azurekvtest.Fault{Status: 404, Body: []byte("<html>")}, kek.Unavailable, same},
		{"a proxy that says 400", azurekvtest.Fault{Status: 400, Body: []byte("{}")}, kek.Unavailable, same},
		{"a redirect", azurekvtest.Fault{Status: 302}, kek.Unavailable, same},
		{"a disabled key by its code", azurekvtest.Fault{Status: 403, Code: "Forbidden", Inner: "KeyDisabled"}, kek.KeyDisabled, same},
		{"a disabled key by its message", azurekvtest.Fault{Status: 403, Code: "Forbidden", Message: "Operation wrapKey is not allowed on a disabled key."}, kek.KeyDisabled, same},
		{"an expired key by its message", azurekvtest.Fault{Status: 403, Code: "Forbidden", Message: "Operation wrapKey is not allowed on an expired key."}, kek.KeyDisabled, same},
		{"no such key", azurekvtest.Fault{Status: 404, Code: "KeyNotFound"}, kek.KeyNotFound, same},
		{"no valid token", azurekvtest.Unauthorized(), kek.Unauthenticated, same},
		{"a rate", azurekvtest.Fault{Status: 429, Code: "Throttled"}, kek.Throttled, same},
		{"a timeout of the gateway", azurekvtest.Fault{Status: 504, Body: []byte("<html>")}, kek.Unavailable, same},
		{"a conflict", azurekvtest.Fault{Status: 409, Code: "Conflict"}, kek.Unknown, same},
		{"a success that is no JSON", azurekvtest.Fault{Body: []byte("<html>")}, kek.Unavailable, same},
		{"a success without content", azurekvtest.Fault{Body: []byte("{}")}, kek.Unavailable, same},
		{"a success of the wrong types", azurekvtest.Fault{Body: []byte(`{"kid": 1, "value": [], "key": ""}`)}, kek.Unavailable, same},
		{"a success of another key", azurekvtest.Fault{Body: []byte(`{"kid": "https://` + vaultHost + `/keys/other/` + w.Key.Version + `", "value": "AAAA", "key": {"kid": "https://` + vaultHost + `/keys/other/` + w.Key.Version + `"}}`)}, kek.Unavailable, same},
		{"a success of another vault", azurekvtest.Fault{Body: []byte(`{"kid": "https://other.vault.azure.net/keys/kek/` + w.Key.Version + `", "value": "AAAA", "key": {"kid": "https://other.vault.azure.net/keys/kek/` + w.Key.Version + `"}}`)}, kek.Unavailable, same},
		{"a connection that is cut", azurekvtest.Fault{Drop: true}, kek.Unavailable, same},
	} {
		t.Run(test.name, func(t *testing.T) {
			defer l.fault(test.fault)()
			_, current := p.Current(t.Context())
			_, wrapped := p.Wrap(t.Context(), newKey())
			_, unwrapped := p.Unwrap(t.Context(), w)
			for op, err := range map[kek.Op]error{kek.OpCurrent: current, kek.OpWrap: wrapped, kek.OpUnwrap: unwrapped} {
				want := test.want
				if op == kek.OpUnwrap && test.unwrap != same {
					want = test.unwrap
				}
				if e, ok := err.(*kek.Error); !ok || e.Kind != want || e.Op != op {
					t.Errorf("%s: %v, want %v", op, err, want)
				} else if strings.Contains(e.Error(), "<html>") {
					t.Errorf("%s: %v: quotes what is not of Key Vault", op, err)
				}
			}
		})
	}
}

func TestRetryAfterIsObeyed(t *testing.T) {
	l := newLab(t, azurekvtest.Config{})
	p := l.provider(t)
	works(t, p)
	l.ResetCalls()
	l.SetFault(azurekvtest.Fault{Status: 429, Code: "Throttled", RetryAfter: time.Second, Times: 1})
	_, err := p.Current(t.Context())
	if e, ok := err.(*kek.Error); !ok || e.Kind != kek.Throttled || e.RetryAfter != time.Second {
		t.Errorf("Current: %v, want %v with 1s to wait", err, kek.Throttled)
	}
	if n := l.Calls("GetKey"); n != 1 {
		t.Errorf("%d GetKey: the SDK retries by itself", n)
	}

	l.SetFault(azurekvtest.Fault{Status: 429, Code: "Throttled", RetryAfter: time.Second, Times: 1})
	begin := time.Now()
	if _, err := kek.Retry(p).Current(t.Context()); err != nil {
		t.Errorf("Current with retries: %v", err)
	}
	if d := time.Since(begin); d < time.Second {
		t.Errorf("tried again after %v, and was asked to wait for 1s", d)
	}
}

// TestChallenges plays an endpoint that wants tokens for something else, or that
// the SDK cannot read.
func TestChallenges(t *testing.T) {
	for _, test := range []struct {
		name, header string
		kind         kek.Kind
		says         string
	}{
		{"another resource", `Bearer authorization="https://login.microsoftonline.com/TENANT", resource="https://management.azure.com"`, kek.Unauthenticated, "management.azure.com"},
		{"another tenant", `Bearer authorization="https://login.microsoftonline.com/11111111-2222-4333-8444-555555555555", resource="https://vault.azure.net"`, kek.Unauthenticated, "11111111-2222-4333-8444-555555555555"},
		{"no tenant", `Bearer authorization="x", resource="https://vault.azure.net"`, kek.Unavailable, "cannot read"},
		{"no resource", `Bearer authorization="https://login.microsoftonline.com/TENANT"`, kek.Unavailable, "resource"},
		{"claims that are none", `Bearer authorization="https://login.microsoftonline.com/TENANT", error="insufficient_claims", claims="!"`, kek.Unavailable, "claims"},
	} {
		t.Run(test.name, func(t *testing.T) {
			l := newLab(t, azurekvtest.Config{})
			bad := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("WWW-Authenticate", strings.ReplaceAll(test.header, "TENANT", l.Tenant()))
				w.WriteHeader(http.StatusUnauthorized)
			}))
			bad.TLS = l.vault.TLS.Clone()
			bad.StartTLS()
			defer bad.Close()
			p := l.provider(t, func(c *azurekv.Config) { c.Endpoint = bad.URL })
			_, err := p.Current(t.Context())
			if kek.KindOf(err) != test.kind || !strings.Contains(err.Error(), test.says) {
				t.Errorf("Current: %v, want %v that says %q", err, test.kind, test.says)
			}
			if n := l.Calls(azurekvtest.ActionToken); n != 0 {
				t.Errorf("%d tokens were fetched for it", n)
			}
		})
	}
}

func TestOldTLSIsNotSpoken(t *testing.T) {
	l := newLab(t, azurekvtest.Config{})
	old := httptest.NewUnstartedServer(l)
	old.Config.ErrorLog = l.vault.Config.ErrorLog
	old.TLS = &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}
	old.StartTLS()
	defer old.Close()
	p := l.provider(t, func(c *azurekv.Config) { c.Endpoint = old.URL })
	if _, err := p.Current(t.Context()); kek.KindOf(err) != kek.Unavailable || !strings.Contains(err.Error(), "protocol version") {
		t.Errorf("Current: %v, want %v that speaks of the protocol's version", err, kek.Unavailable)
	}
}

func TestAnEndpointThatNobodyVouchesForIsNotSpokenTo(t *testing.T) {
	l := newLab(t, azurekvtest.Config{})
	p := l.provider(t, func(c *azurekv.Config) { c.CABundle = "" })
	_, err := p.Current(t.Context())
	if kek.KindOf(err) != kek.Unavailable || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("Current: %v, want %v that speaks of the certificate", err, kek.Unavailable)
	}
	if n := l.Calls(""); n != 0 {
		t.Errorf("%d calls reached it", n)
	}
}

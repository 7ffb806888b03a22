package homes

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/kube-kek/kube-kek/e2e/homes/vaulttest"
	"github.com/kube-kek/kube-kek/kek"
	"github.com/kube-kek/kube-kek/kek/kektest"
	"github.com/kube-kek/kube-kek/kek/transit"
	"github.com/kube-kek/kube-kek/kek/transit/vault"
)

type args = vaulttest.Args

var (
	_ kek.Informer   = (*transit.Provider)(nil)
	_ kek.Identifier = (*transit.Provider)(nil)

	cluster = kek.NewBinding("prod-eu-1", nil)
)

// policy is what package transit tells operators to grant, for two keys.
const policy = `
path "transit/keys/+" { capabilities = ["read"] }
path "transit/encrypt/+" { capabilities = ["update"] }
path "transit/decrypt/+" { capabilities = ["update"] }
`

// server is a Vault with Transit at its usual mount and two keys in it.
type server struct {
	*vaulttest.Server
	t *testing.T
}

func start(t *testing.T) *server {
	for _, pair := range os.Environ() {
		if name, _, _ := strings.Cut(pair, "="); strings.HasPrefix(name, "VAULT_") || strings.HasPrefix(name, "BAO_") {
			t.Setenv(name, "") // so that it is as it was, afterwards
			os.Unsetenv(name)
		}
	}
	v := &server{vaulttest.Start(t), t}
	v.Do("POST", "sys/mounts/transit", args{"type": "transit"})
	v.Do("POST", "transit/keys/kek", args{})
	v.Do("POST", "transit/keys/other", args{})
	v.grant(policy)
	return v
}

func (v *server) grant(policy string) { v.Do("PUT", "sys/policies/acl/kek", args{"policy": policy}) }

// appRole enables AppRole with a role that has the policy, and returns how to
// log in by it. More settings override the role's own.
func (v *server) appRole(settings args) vault.Auth {
	v.t.Helper()
	v.Do("POST", "sys/auth/approle", args{"type": "approle"})
	role := args{"token_policies": []string{"kek"}}
	for k, s := range settings {
		role[k] = s
	}
	v.Do("POST", "auth/approle/role/kek", role)
	v.restoreSecretID()
	return vault.Auth{
		Method: vault.AppRole, RoleID: v.Do("GET", "auth/approle/role/kek/role-id", nil)["role_id"].(string),
		SecretIDFile: v.Write("secret-id", secretID+"\n"),
	}
}

const secretID = "2f5a7f0e-1111-2222-3333-444455556666"

func (v *server) restoreSecretID() {
	v.Do("POST", "auth/approle/role/kek/custom-secret-id", args{"secret_id": secretID})
}

// revoke ends every token that a method gave.
func (v *server) revoke(method string) {
	v.t.Helper()
	v.Do("PUT", "sys/leases/revoke-prefix/auth/"+method, args{"sync": true})
}

func (v *server) token(settings args) string {
	v.t.Helper()
	return v.Do("POST", "auth/token/create", settings)["client_token"].(string)
}

func (v *server) config(auth vault.Auth) transit.Config {
	return transit.Config{Key: "kek", Binding: cluster, Server: vault.Config{Address: v.URL, CABundle: v.CA, Auth: auth}}
}

func provider(t testing.TB, c transit.Config) *transit.Provider {
	t.Helper()
	p, err := transit.New(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// use does everything with p that can be done with a KEK.
func use(ctx context.Context, p kek.Provider) error {
	if _, err := p.Current(ctx); err != nil {
		return err
	}
	w, err := p.Wrap(ctx, []byte("a key"))
	if err != nil {
		return err
	}
	_, err = p.Unwrap(ctx, w)
	return err
}

// want checks that err is of a kind and says some words.
func want(t *testing.T, err error, kind kek.Kind, words ...string) {
	t.Helper()
	if err == nil || kek.KindOf(err) != kind {
		t.Errorf("got %v, want %v", err, kind)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q does not say %q", err, w)
		}
	}
}

func TestTransitIsAProvider(t *testing.T) {
	v := start(t)
	auth, proxy := v.appRole(nil), v.Proxy()
	made := func(change func(*transit.Config)) func(testing.TB) kek.Provider {
		return func(t testing.TB) kek.Provider {
			c := v.config(auth)
			c.Server.Address = proxy.URL
			change(&c)
			return provider(t, c)
		}
	}
	v.Do("POST", "transit/keys/kek/config", args{"exportable": true, "allow_plaintext_backup": true, "deletion_allowed": true})
	kektest.Run(t, kektest.Harness{
		New:     made(func(*transit.Config) {}),
		Other:   made(func(c *transit.Config) { c.Key = "other" }),
		Foreign: made(func(c *transit.Config) { c.Binding = kek.NewBinding("other", nil) }),
		Rotate:  func(testing.TB) { v.Do("POST", "transit/keys/kek/rotate", args{}) },
		Remove: func(testing.TB) func() {
			backup := v.Do("GET", "transit/backup/kek", nil)
			v.Do("DELETE", "transit/keys/kek", nil)
			return func() { v.Do("POST", "transit/restore/kek", backup) }
		},
		Deny: func(testing.TB) func() {
			v.grant(`path "transit/keys/kek" { capabilities = ["deny"] }`)
			return func() { v.grant(policy) }
		},
		Expire: func(testing.TB) func() {
			v.Do("POST", "auth/approle/role/kek/secret-id/destroy", args{"secret_id": secretID})
			v.revoke("approle")
			return v.restoreSecretID
		},
		Throttle: func(testing.TB) func() {
			// One call a day, and here it is.
			v.Do("POST", "sys/quotas/rate-limit/transit", args{"path": "transit/", "rate": 1, "interval": "24h"})
			v.Do("GET", "transit/keys/other", nil)
			return func() { v.Do("DELETE", "sys/quotas/rate-limit/transit", nil) }
		},
		Cut: func(testing.TB) func() {
			proxy.Cut()
			return proxy.Heal
		},
		Hang:  func(testing.TB) func() { return proxy.Hang() },
		Lacks: map[string]string{"Disable": "Vault has no such state; min_decryption_version never reaches the latest version"},
	})
}

func TestWhatIsDeniedIsNamed(t *testing.T) {
	v := start(t)
	for name, role := range map[string]args{
		"a token that may look itself up": nil,
		"one that may not":                {"token_no_default_policy": true},
	} {
		t.Run(name, func(t *testing.T) {
			v.Do("DELETE", "sys/auth/approle", nil)
			p := provider(t, v.config(v.appRole(role)))
			v.grant(policy)
			w, err := p.Wrap(t.Context(), []byte("a key"))
			if err != nil {
				t.Fatal(err)
			}
			_, err = p.Unwrap(t.Context(), w)
			if err != nil {
				t.Fatal(err)
			}
			v.grant(`path "transit/keys/kek" { capabilities = ["read"] }`)
			_, err = p.Wrap(t.Context(), []byte("a key"))
			want(t, err, kek.Denied, "needs update on transit/encrypt/kek")
			_, err = p.Unwrap(t.Context(), w)
			want(t, err, kek.Denied, "needs update on transit/decrypt/kek")
			v.grant(`path "transit/keys/kek" { capabilities = ["list"] }`)
			_, err = p.Current(t.Context())
			want(t, err, kek.Denied, "needs read on transit/keys/kek")
			v.grant(policy)
			if err := use(t.Context(), p); err != nil {
				t.Errorf("granted again: %v", err)
			}
		})
	}
}

func TestAVersionBelowTheMinimumIsDisabled(t *testing.T) {
	v := start(t)
	p := provider(t, v.config(v.appRole(nil)))
	old, err := p.Wrap(t.Context(), []byte("a key"))
	if err != nil || old.Key != (kek.KeyRef{ID: "transit/kek", Version: "1"}) || len(old.Ciphertext) != 12+len("a key")+16 {
		t.Fatalf("%v of %d bytes, %v", old.Key, len(old.Ciphertext), err)
	}
	v.Do("POST", "transit/keys/kek/rotate", args{})
	v.Do("POST", "transit/keys/kek/config", args{"min_decryption_version": 2})
	_, err = p.Unwrap(t.Context(), old)
	want(t, err, kek.KeyDisabled, "transit/kek@1", "too old")
	young, err := p.Wrap(t.Context(), []byte("a key"))
	if err != nil || young.Key.Version != "2" {
		t.Fatalf("%v, %v", young.Key, err)
	}
	young.Key.Version = "3"
	_, err = p.Unwrap(t.Context(), young)
	want(t, err, kek.KeyNotFound, "too new")
	old.Key.Version = "2"
	_, err = p.Unwrap(t.Context(), old)
	want(t, err, kek.Corrupt)
	for _, version := range []string{"", "0", "-1", "02", "2x", "latest"} {
		young.Key.Version = version
		_, err = p.Unwrap(t.Context(), young)
		want(t, err, kek.Invalid)
	}
	v.Do("POST", "transit/keys/kek/config", args{"min_decryption_version": 1})
	old.Key.Version = "1"
	if _, err := p.Unwrap(t.Context(), old); err != nil {
		t.Errorf("allowed again: %v", err)
	}
}

func TestASealedVaultIsAnOutage(t *testing.T) {
	v := start(t)
	auth := v.appRole(nil)
	p := provider(t, v.config(auth))
	if err := use(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	v.Seal()
	want(t, use(t.Context(), p), kek.Unavailable, "503", "sealed")
	want(t, use(t.Context(), provider(t, v.config(auth))), kek.Unavailable, "503", "sealed")
	v.Unseal()
	if err := use(t.Context(), p); err != nil {
		t.Errorf("unsealed: %v", err)
	}
}

func TestAQuotaSaysWhenToTryAgain(t *testing.T) {
	v := start(t)
	p := provider(t, v.config(v.appRole(nil)))
	v.Do("POST", "sys/quotas/config", args{"enable_rate_limit_response_headers": true})
	v.Do("POST", "sys/quotas/rate-limit/transit", args{"path": "transit/", "rate": 1, "interval": "24h"})
	v.Do("GET", "transit/keys/other", nil)
	err := use(t.Context(), p)
	want(t, err, kek.Throttled, "quota exceeded")
	if e := err.(*kek.Error); e.RetryAfter < time.Hour || e.RetryAfter > 24*time.Hour {
		t.Errorf("RetryAfter %v", e.RetryAfter)
	}
}

func TestAKeyThatCannotBeAKEKIsRefused(t *testing.T) {
	v := start(t)
	v.grant(`path "*" { capabilities = ["read", "update"] }`)
	v.Do("POST", "sys/mounts/kv", args{"type": "kv"})
	v.Do("POST", "kv/keys/kek", args{"x": "y"})
	v.Do("POST", "sys/mounts/kv2", args{"type": "kv", "options": args{"version": "2"}})
	for key, settings := range map[string]args{
		"rsa": {"type": "rsa-2048"}, "ecdsa": {"type": "ecdsa-p256"}, "hmac": {"type": "hmac", "key_size": 32}, "derived": {"derived": true},
	} {
		v.Do("POST", "transit/keys/"+key, settings)
	}
	auth := v.appRole(nil)
	for _, c := range []struct {
		mount, key string
		kind       kek.Kind
		want       string
	}{
		{"", "rsa", kek.Invalid, "rsa-2048 cannot bind"},
		{"", "ecdsa", kek.Invalid, "make one of type aes256-gcm96"},
		{"", "hmac", kek.Invalid, "make one of type aes256-gcm96"},
		{"", "derived", kek.Invalid, "make one that is not derived"},
		{"", "none", kek.KeyNotFound, "nothing is at this path: correct the key"},
		{"none", "kek", kek.KeyNotFound, "correct the key, the mount"},
		{"kv", "kek", kek.Invalid, "kv is not the Transit engine"},
		{"kv", "none", kek.KeyNotFound, "correct the key, the mount"},
		{"kv2", "kek", kek.KeyNotFound, "versioned K/V secrets engine"},
		{"sys", "kek", kek.KeyNotFound, "correct the key, the mount"},
	} {
		t.Run(c.mount+"/"+c.key, func(t *testing.T) {
			conf := v.config(auth)
			conf.Mount, conf.Key = c.mount, c.key
			p := provider(t, conf)
			_, err := p.Current(t.Context())
			want(t, err, c.kind, c.want)
			_, err = p.Wrap(t.Context(), []byte("a key"))
			want(t, err, c.kind, c.want)
		})
	}
}

func TestFactsOfAKey(t *testing.T) {
	v := start(t)
	p := provider(t, v.config(v.appRole(nil)))
	facts := func() kek.Facts {
		t.Helper()
		if _, err := p.Current(t.Context()); err != nil {
			t.Fatal(err)
		}
		return p.Facts()
	}
	f := facts()
	if time.Since(f.Created).Abs() > time.Minute || f.VersionCreated != f.Created || f.Rotation != "off" || f.Notes != nil {
		t.Errorf("a plain key: %+v", f)
	}
	v.Do("POST", "transit/keys/kek/rotate", args{})
	v.Do("POST", "transit/keys/kek/config", args{
		"auto_rotate_period": "720h", "deletion_allowed": true, "exportable": true, "min_decryption_version": 2,
	})
	f = facts()
	notes := strings.Join(f.Notes, " ")
	for _, n := range []string{"deletion_allowed", "exported", "min_decryption_version is 2"} {
		if !strings.Contains(notes, n) {
			t.Errorf("the notes %q do not say %s", notes, n)
		}
	}
	if f.Rotation != "every 720h0m0s" || f.Key.Version != "2" || f.VersionCreated.IsZero() || !f.Created.IsZero() {
		t.Errorf("%+v", f)
	}
	p = provider(t, v.config(vault.Auth{TokenFile: v.Write("sink", v.token(args{"policies": []string{"root"}}))}))
	if notes := strings.Join(facts().Notes, " "); !strings.Contains(notes, "never ends") {
		t.Errorf("a root token: %q", notes)
	}
}

func TestRequestIDsAreThoseOfVaultsAuditLog(t *testing.T) {
	v := start(t)
	p := provider(t, v.config(v.appRole(nil)))
	var calls kek.Calls
	ctx := kek.WithCalls(t.Context(), &calls)
	w, err := p.Wrap(ctx, []byte("a key"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Unwrap(ctx, w); err != nil {
		t.Fatal(err)
	}
	var audited []string
	for _, path := range []string{"auth/approle/login", "transit/keys/kek", "transit/encrypt/kek", "transit/decrypt/kek"} {
		audited = append(audited, v.Audited(path)[len(v.Audited(path))-1])
	}
	if got, want := strings.Join(calls.IDs(), " "), strings.Join(audited, " "); got != want {
		t.Errorf("recorded %s, audited %s", got, want)
	}
}

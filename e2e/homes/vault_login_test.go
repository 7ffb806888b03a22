package homes

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kube-kek/kube-kek/kek"
	"github.com/kube-kek/kube-kek/kek/transit/vault"
)

func TestEveryWayToLogIn(t *testing.T) {
	v := start(t)
	v.Do("POST", "sys/auth/kubernetes", args{"type": "kubernetes"})
	v.Do("POST", "auth/kubernetes/config", args{"kubernetes_host": reviewer(t), "token_reviewer_jwt": "reviewer", "disable_local_ca_jwt": true})
	v.Do("POST", "auth/kubernetes/role/kek", args{"bound_service_account_names": "kube-kek", "bound_service_account_namespaces": "kube-system", "token_policies": "kek", "audience": "vault"})
	issuer := v.jwt("30m")
	cert, key := v.Certificate("node-1", "", time.Now().Add(time.Hour))
	v.cert()
	sink := v.token(args{"policies": []string{"kek"}, "ttl": "1h", "display_name": "agent"})

	for _, c := range []struct {
		name   string
		change func(*vault.Config)
		want   string
	}{
		{"a pod's token", func(c *vault.Config) {
			c.Auth = vault.Auth{Method: vault.Kubernetes, Role: "kek", TokenFile: v.Write("pod-token", issuer.sign("system:serviceaccount:kube-system:kube-kek", "vault", time.Hour))}
		}, "service_account_name kube-kek"},
		{"a JWT", func(c *vault.Config) {
			c.Auth = vault.Auth{Method: vault.JWT, Role: "kek", TokenFile: v.Write("jwt", issuer.sign("node-1", "vault", time.Hour))}
		}, "jwt-node-1 by auth/jwt/login"},
		{"an AppRole", func(c *vault.Config) { c.Auth = v.appRole(nil) }, "approle by auth/approle/login"},
		{"a certificate", func(c *vault.Config) {
			c.ClientCert, c.ClientKey, c.Auth = cert, key, vault.Auth{Method: vault.Cert, Role: "node"}
		}, "common_name node-1"},
		{"a token's file", func(c *vault.Config) { c.Auth = vault.Auth{TokenFile: v.Write("sink", sink)} }, "token-agent by auth/token/create"},
		{"a token in the environment", func(c *vault.Config) { t.Setenv("VAULT_TOKEN", sink) }, "token-agent"},
	} {
		t.Run(c.name, func(t *testing.T) {
			conf := v.config(vault.Auth{})
			c.change(&conf.Server)
			p := provider(t, conf)
			if err := use(t.Context(), p); err != nil {
				t.Fatal(err)
			}
			if who, err := p.Identity(t.Context()); err != nil || !strings.Contains(who, c.want) {
				t.Errorf("Identity: %q, %v, want %q", who, err, c.want)
			}
			static := strings.Contains(strings.Join(p.Facts().Notes, " "), "static")
			if static != (c.name == "a token in the environment") {
				t.Errorf("notes: %q", p.Facts().Notes)
			}
		})
	}
}

func TestALoginThatIsRefusedIsUnauthenticated(t *testing.T) {
	v := start(t)
	issuer := v.jwt("30m")
	good := v.appRole(nil)
	refused := func(name string, auth vault.Auth, words ...string) {
		t.Run(name, func(t *testing.T) {
			err := use(t.Context(), provider(t, v.config(auth)))
			want(t, err, kek.Unauthenticated, append(words, "logging in to Vault by")...)
			for _, secret := range []string{secretID, "eyJ"} {
				if strings.Contains(err.Error(), secret) {
					t.Errorf("the error holds the credential: %v", err)
				}
			}
		})
	}
	jwt := func(token string) vault.Auth {
		return vault.Auth{Method: vault.JWT, Role: "kek", TokenFile: v.Write("bad-jwt", token)}
	}
	auth := good
	auth.RoleID = "nobody"
	refused("an unknown role ID", auth, "400", "invalid role or secret ID")
	auth = good
	auth.Mount = "nowhere"
	refused("a mount without a method", auth, "Vault answers 403")
	auth = good
	auth.SecretIDFile += ".none"
	refused("no secret ID", auth, "no such file")
	refused("a JWT of another audience", jwt(issuer.sign("node-1", "other", time.Hour)), "audience")
	refused("a JWT that has ended", jwt(issuer.sign("node-1", "vault", -time.Hour)), "expired")
	refused("a JWT of another issuer", jwt(newIssuer(t).sign("node-1", "vault", time.Hour)), "signature")
	refused("a token that is none", vault.Auth{TokenFile: v.Write("bad-token", "hvs.none")}, "invalid token")
	loose := v.Write("loose", "hvs.none")
	if err := os.Chmod(loose, 0o644); err != nil {
		t.Fatal(err)
	}
	refused("a token that everybody may read", vault.Auth{TokenFile: loose}, "mode 0644", "chmod 600 "+loose)
}

// Tokens of 5 s are renewed for a minute; where they may not live for longer
// than 12 s, there are logins between; and the JWT itself ends after 10 s.
func TestShortTokensForAMinuteUnderLoad(t *testing.T) {
	v := start(t)
	issuer := v.jwt("5s")
	files := map[string]vault.Auth{
		"approle": v.appRole(args{"token_ttl": "5s", "token_max_ttl": "12s"}),
		"jwt":     {Method: vault.JWT, Role: "kek", TokenFile: v.Write("jwt", issuer.sign("node-1", "vault", 10*time.Second))},
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			v.Write("jwt", issuer.sign("node-1", "vault", 10*time.Second))
			time.Sleep(time.Second)
		}
	})
	for method, auth := range files {
		p := provider(t, v.config(auth))
		for range 4 {
			wg.Go(func() {
				rounds := 0
				for ; ctx.Err() == nil; rounds++ {
					if err := use(t.Context(), p); err != nil {
						t.Errorf("%s, after %d rounds: %v", method, rounds, err)
					}
					time.Sleep(20 * time.Millisecond)
				}
				t.Logf("%s: %d rounds", method, rounds)
			})
		}
	}
	wg.Wait()
	logins, renewals := len(v.Audited("auth/approle/login"))+len(v.Audited("auth/jwt/login")), len(v.Audited("auth/token/renew-self"))
	t.Logf("%d logins, %d renewals", logins, renewals)
	// One provider of each kind needs a new life every 3.3 s.
	if logins+renewals < 30 || logins+renewals > 80 || logins < 4 || renewals < 20 {
		t.Errorf("%d logins and %d renewals in a minute of tokens of 5 s", logins, renewals)
	}
}

func TestARevokedTokenIsReplacedWithoutARestart(t *testing.T) {
	v := start(t)
	p := provider(t, v.config(v.appRole(nil)))
	for range 3 {
		if err := use(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		v.revoke("approle")
	}
	if n := len(v.Audited("auth/approle/login")); n != 3 {
		t.Errorf("%d logins, want 3", n)
	}
}

func TestATokensFileIsReadAgainWhenItChanges(t *testing.T) {
	v := start(t)
	first := v.token(args{"policies": []string{"kek"}, "ttl": "1h"})
	file := v.Write("sink", first)
	p := provider(t, v.config(vault.Auth{TokenFile: file}))
	if err := use(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	v.Do("POST", "auth/token/revoke", args{"token": first})
	want(t, use(t.Context(), p), kek.Unauthenticated, "invalid token", "logging in to Vault by token")
	v.Write("sink", v.token(args{"policies": []string{"kek"}, "ttl": "1h", "display_name": "second"}))
	if err := use(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	// The first one lives on here: the file alone moves the provider to another.
	v.Write("sink", v.token(args{"policies": []string{"kek"}, "ttl": "1h", "display_name": "third"}))
	if who, err := p.Identity(t.Context()); err != nil || !strings.Contains(who, "token-third") {
		t.Errorf("%s, %v", who, err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := use(t.Context(), p); err != nil {
		t.Errorf("the file is gone and the token is not: %v", err)
	}
}

func TestACertificateIsReadAgainForEveryLogin(t *testing.T) {
	v := start(t)
	v.cert()
	c := v.config(vault.Auth{Method: vault.Cert})
	c.Server.ClientCert, c.Server.ClientKey = v.Certificate("node-1", "", time.Now().Add(time.Hour))
	p := provider(t, c)
	is := func(name string) {
		t.Helper()
		if who, err := p.Identity(t.Context()); err != nil || !strings.Contains(who, "common_name "+name) {
			t.Errorf("%s, %v, want %s", who, err, name)
		}
	}
	is("node-1")
	cert, key := v.Certificate("node-2", "", time.Now().Add(time.Hour))
	move(t, cert, c.Server.ClientCert)
	move(t, key, c.Server.ClientKey)
	v.revoke("cert")
	is("node-2")
	if err := os.Chmod(c.Server.ClientKey, 0o644); err != nil {
		t.Fatal(err)
	}
	v.revoke("cert")
	want(t, use(t.Context(), p), kek.Unauthenticated, "chmod 600 "+c.Server.ClientKey)
}

func move(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

// cert enables logins by certificates of the server's own authority.
func (v *server) cert() {
	v.t.Helper()
	ca, err := os.ReadFile(v.CA)
	if err != nil {
		v.t.Fatal(err)
	}
	v.Do("POST", "sys/auth/cert", args{"type": "cert"})
	v.Do("POST", "auth/cert/certs/node", args{"certificate": string(ca), "token_policies": "kek"})
}

// jwt enables logins by the JWTs of the issuer that it returns.
func (v *server) jwt(ttl string) *issuer {
	v.t.Helper()
	i := newIssuer(v.t)
	der, err := x509.MarshalPKIXPublicKey(i.key.Public())
	if err != nil {
		v.t.Fatal(err)
	}
	v.Do("POST", "sys/auth/jwt", args{"type": "jwt"})
	v.Do("POST", "auth/jwt/config", args{"jwt_validation_pubkeys": string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))})
	v.Do("POST", "auth/jwt/role/kek", args{
		"role_type": "jwt", "user_claim": "sub", "bound_audiences": "vault", "token_policies": "kek", "token_ttl": ttl,
		"clock_skew_leeway": -1, "expiration_leeway": -1,
	})
	return i
}

type issuer struct{ key *ecdsa.PrivateKey }

func newIssuer(t *testing.T) *issuer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &issuer{key}
}

// sign returns a JWT that ends after life.
func (i *issuer) sign(subject, audience string, life time.Duration) string {
	part := func(claims args) string {
		text, _ := json.Marshal(claims)
		return base64.RawURLEncoding.EncodeToString(text)
	}
	now := time.Now()
	token := part(args{"alg": "ES256", "typ": "JWT"}) + "." + part(args{
		"sub": subject, "aud": []string{audience},
		"iat": now.Add(-2 * time.Hour).Unix(), "nbf": now.Add(-2 * time.Hour).Unix(), "exp": now.Add(life).Unix(),
		"kubernetes.io": args{"namespace": "kube-system", "serviceaccount": args{"name": "kube-kek", "uid": "1"}},
	})
	digest := sha256.Sum256([]byte(token))
	r, s, err := ecdsa.Sign(rand.Reader, i.key, digest[:])
	if err != nil {
		panic(err)
	}
	return token + "." + base64.RawURLEncoding.EncodeToString(append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...))
}

// reviewer is a kube-apiserver as far as Vault asks it: it says whose a token is.
func reviewer(t *testing.T) (url string) {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if r.URL.Path != "/apis/authentication.k8s.io/v1/tokenreviews" || r.Header.Get("Authorization") != "Bearer reviewer" || !strings.Contains(string(body), "eyJ") {
			http.Error(w, "no", http.StatusForbidden)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusCreated)
		json.NewEncoder(w).Encode(args{"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "status": args{
			"authenticated": true, "audiences": []string{"vault"},
			"user": args{"username": "system:serviceaccount:kube-system:kube-kek", "uid": "1", "groups": []string{"system:serviceaccounts"}},
		}})
	}))
	t.Cleanup(s.Close)
	return s.URL
}

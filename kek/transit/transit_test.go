package transit_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/kube-kek/kube-kek/kek"
	"github.com/kube-kek/kube-kek/kek/transit"
	"github.com/kube-kek/kube-kek/kek/transit/vault"
)

// That Transit is used rightly, e2e/homes shows on a real Vault. Here are the
// answers that a real Vault does not give when it is asked to.

// answers is a server with an answer of status and body for each path.
type answers map[string]answer

type answer struct {
	status int
	body   string
}

const key = `{"data":{"type":"aes256-gcm96","latest_version":7,"keys":{"7":1700000000}}}`

// well is a server that gives tokens and knows the key kek, up to version 7.
func well() answers {
	return answers{
		"GET auth/token/lookup-self": {200, `{"data":{"ttl":3600}}`},
		"GET transit/keys/kek":       {200, key},
	}
}

// start starts a server and returns a provider that has a token for it. What is
// sent to the server, it returns too.
func (a answers) start(t *testing.T) (*transit.Provider, map[string]map[string]any) {
	t.Helper()
	sent := map[string]map[string]any{}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		path := r.Method + " " + strings.TrimPrefix(r.URL.Path, "/v1/")
		var in map[string]any
		json.NewDecoder(r.Body).Decode(&in)
		sent[path] = in
		answer := a[path]
		w.WriteHeader(answer.status)
		io.WriteString(w, answer.body)
	}))
	t.Cleanup(s.Close)
	useToken(t)
	return provider(t, transit.Config{Key: "kek", Binding: kek.Binding{"a": "b"}, Server: vault.Config{Address: s.URL}}), sent
}

// useToken leaves a token in the environment and nothing else of Vault's.
func useToken(t *testing.T) {
	for _, pair := range os.Environ() {
		if name, _, _ := strings.Cut(pair, "="); strings.HasPrefix(name, "VAULT_") || strings.HasPrefix(name, "BAO_") {
			t.Setenv(name, "")
			os.Unsetenv(name)
		}
	}
	t.Setenv("VAULT_TOKEN", "a-token")
}

func provider(t *testing.T, c transit.Config) *transit.Provider {
	t.Helper()
	p, err := transit.New(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func want(t *testing.T, err error, kind kek.Kind, words string) {
	t.Helper()
	if err == nil || kek.KindOf(err) != kind || !strings.Contains(err.Error(), words) {
		t.Errorf("got %v, want %v that says %q", err, kind, words)
	}
}

func TestBadConfigurationIsInvalidAndSaysWhy(t *testing.T) {
	useToken(t)
	for _, c := range []struct {
		name   string
		config transit.Config
		want   string
	}{
		{"no key", transit.Config{}, `key ""`},
		{"a path for a key", transit.Config{Key: "transit/keys/kek"}, "letters, digits"},
		{"a key that climbs", transit.Config{Key: ".."}, "letters, digits"},
		{"a key with a query", transit.Config{Key: "kek?x"}, "letters, digits"},
		{"a key with an @", transit.Config{Key: "kek@2"}, "letters, digits"},
		{"a mount that climbs", transit.Config{Key: "kek", Mount: "a/../sys"}, "letters, digits"},
		{"an empty part of a mount", transit.Config{Key: "kek", Mount: "a//b"}, "letters, digits"},
		{"a namespace with a space", transit.Config{Key: "kek", Server: vault.Config{Namespace: "a b"}}, "letters, digits"},
		{"a name that is too long", transit.Config{Key: "kek", Mount: strings.Repeat("m", 147)}, "151 bytes long, want at most 150"},
		{"a bad server", transit.Config{Key: "kek", Server: vault.Config{Address: "vault.example.com:8200"}}, "https://HOST"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := transit.New(t.Context(), c.config)
			want(t, err, kek.Invalid, c.want)
		})
	}
}

func TestTheIDIsNamespaceMountAndKey(t *testing.T) {
	for _, c := range []struct{ namespace, mount, want string }{
		{"", "", "transit/kek"},
		{"", "/teams/a/kms/", "teams/a/kms/kek"},
		{"admin/team-a/", "", "admin/team-a/transit/kek"},
	} {
		useToken(t)
		p := provider(t, transit.Config{Key: "kek", Mount: c.mount, Server: vault.Config{Namespace: c.namespace}})
		_, err := p.Unwrap(t.Context(), kek.Wrapped{Key: kek.KeyRef{ID: c.want, Version: "x"}})
		want(t, err, kek.Invalid, c.want+"@x: invalid: \"x\" is not a version")
	}
}

func TestACiphertextIsStoredWithoutItsTextForm(t *testing.T) {
	raw := []byte("\x00\x01 nonce, ciphertext and tag \xff")
	a := well()
	a["POST transit/encrypt/kek"] = answer{200, `{"data":{"ciphertext":"vault:v7:` + base64.StdEncoding.EncodeToString(raw) + `"}}`}
	a["POST transit/decrypt/kek"] = answer{200, `{"data":{"plaintext":"YSBrZXk="}}`}
	p, sent := a.start(t)
	w, err := p.Wrap(t.Context(), []byte("a key"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(kek.Wrapped{Key: kek.KeyRef{ID: "transit/kek", Version: "7"}, Ciphertext: raw}, w); diff != "" {
		t.Error(diff)
	}
	got, err := p.Unwrap(t.Context(), w)
	if err != nil || string(got) != "a key" {
		t.Errorf("%q, %v", got, err)
	}
	ad := base64.StdEncoding.EncodeToString(kek.Binding{"a": "b"}.Bytes())
	for path, body := range map[string]map[string]any{
		"POST transit/encrypt/kek": {"plaintext": "YSBrZXk=", "associated_data": ad, "key_version": 7.0},
		"POST transit/decrypt/kek": {"ciphertext": "vault:v7:" + base64.StdEncoding.EncodeToString(raw), "associated_data": ad},
	} {
		if diff := cmp.Diff(body, sent[path]); diff != "" {
			t.Errorf("%s (-want +sent):\n%s", path, diff)
		}
	}
}

func TestAnAnswerThatIsNoCiphertextIsNotBelieved(t *testing.T) {
	good := base64.StdEncoding.EncodeToString(make([]byte, 33))
	for name, ciphertext := range map[string]string{
		"nothing":                          "",
		"no prefix":                        good,
		"another version":                  "vault:v8:" + good,
		"a version that begins alike":      "vault:v77:" + good,
		"no base64":                        "vault:v7:!!!!",
		"base64 with a line break":         "vault:v7:" + good[:4] + "\\n" + good[4:],
		"base64 that says it in two ways":  "vault:v7:" + strings.Repeat("A", 42) + "B=",
		"URL base64":                       "vault:v7:" + strings.Repeat("_", 44),
		"less than the plaintext and more": "vault:v7:YSBrZXk=",
	} {
		t.Run(name, func(t *testing.T) {
			a := well()
			a["POST transit/encrypt/kek"] = answer{200, `{"data":{"ciphertext":"` + ciphertext + `"}}`}
			p, _ := a.start(t)
			_, err := p.Wrap(t.Context(), []byte("a key"))
			want(t, err, kek.Unavailable, "wrap with transit/kek: unavailable: the answer is not a ciphertext of version 7")
		})
	}
}

func TestAnAnswerWithoutPlaintextIsNotBelieved(t *testing.T) {
	a := well()
	a["POST transit/decrypt/kek"] = answer{200, `{"data":{}}`}
	p, _ := a.start(t)
	_, err := p.Unwrap(t.Context(), kek.Wrapped{Key: kek.KeyRef{ID: "transit/kek", Version: "7"}, Ciphertext: []byte("x")})
	want(t, err, kek.Unavailable, "unwrap with transit/kek@7: unavailable: the answer holds no plaintext")
}

func TestOnlyKeysThatBindAreUsed(t *testing.T) {
	for _, c := range []struct {
		data string
		kind kek.Kind
		want string
	}{
		{`"type":"aes128-gcm96","latest_version":1`, -1, ""},
		{`"type":"chacha20-poly1305","latest_version":1`, -1, ""},
		{`"type":"xchacha20-poly1305","latest_version":1`, -1, ""},
		{`"type":"aes256-cbc","latest_version":1`, kek.Invalid, "aes256-cbc cannot bind"},
		{`"type":"managed_key","latest_version":1`, kek.Invalid, "managed_key cannot bind"},
		{`"type":"aes256-gcm96","latest_version":1,"derived":true`, kek.Invalid, "not derived"},
		{`"type":"aes256-gcm96","latest_version":1,"soft_deleted":true`, kek.KeyDisabled, "soft-deleted: restore it"},
		{`"type":"aes256-gcm96"`, kek.Invalid, "not the Transit engine"},
		{`"keys":["kek"]`, kek.Unavailable, "not one of Vault"},
	} {
		t.Run(c.data, func(t *testing.T) {
			a := well()
			a["GET transit/keys/kek"] = answer{200, "{\"data\":{" + c.data + "}}"}
			p, _ := a.start(t)
			_, err := p.Current(t.Context())
			if c.kind >= 0 {
				want(t, err, c.kind, c.want)
			} else if err != nil {
				t.Error(err)
			}
			if state := p.Facts().State; (state == kek.StateDisabled) != (c.kind == kek.KeyDisabled) {
				t.Errorf("state %q", state)
			}
		})
	}
}

func TestPlaintextsOfOtherSizesAreInvalid(t *testing.T) {
	useToken(t)
	p := provider(t, transit.Config{Key: "kek"})
	for _, n := range []int{0, kek.MaxPlaintext + 1} {
		_, err := p.Wrap(t.Context(), make([]byte, n))
		want(t, err, kek.Invalid, fmt.Sprintf("a key of %d bytes", n))
	}
}

func TestErrorsHoldNoSecret(t *testing.T) {
	for name, body := range map[string]string{"an error": `{"errors":["no\n\n* really"]}`, "a page": "<html>a-token</html>"} {
		a := well()
		for _, op := range []string{"encrypt", "decrypt"} {
			a["POST transit/"+op+"/kek"] = answer{400, body}
		}
		p, _ := a.start(t)
		_, wrapped := p.Wrap(context.Background(), []byte("the-plaintext-key"))
		_, unwrapped := p.Unwrap(context.Background(), kek.Wrapped{Key: kek.KeyRef{ID: "transit/kek", Version: "7"}, Ciphertext: []byte("x")})
		for _, err := range []error{wrapped, unwrapped} {
			for _, secret := range []string{"the-plaintext-key", "dGhlLXBsYWlu", "a-token", "html", "http", "\n"} {
				if err == nil || strings.Contains(fmt.Sprintf("%v %+v", err, err), secret) {
					t.Errorf("%s: the error holds %q: %v", name, secret, err)
				}
			}
		}
	}
}

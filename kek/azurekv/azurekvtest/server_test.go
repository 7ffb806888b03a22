package azurekvtest_test

import (
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/kube-kek/kube-kek/kek/azurekv/azurekvtest"
)

// lab calls a stand-in without an SDK, which would not make these mistakes.
type lab struct {
	*azurekvtest.Server
	srv    *httptest.Server
	me     azurekvtest.Principal
	secret string
}

func newLab(t testing.TB, c azurekvtest.Config) *lab {
	t.Helper()
	s := azurekvtest.New(c)
	srv := s.StartTLS()
	t.Cleanup(srv.Close)
	l := &lab{Server: s, srv: srv, secret: "not-a-real-secret"}
	l.me = s.AddPrincipal(azurekvtest.Principal{Secret: l.secret, ResourceID: "/x", System: true, Allow: []string{"keys/*"}})
	return l
}

type reply struct {
	status int
	header http.Header
	body   map[string]any
}

// code is the innermost code of a refusal.
func (r reply) code() string {
	switch e := r.body["error"].(type) {
	case string:
		return e
	case map[string]any:
		if inner, ok := e["innererror"].(map[string]any); ok {
			return inner["code"].(string)
		}
		return e["code"].(string)
	}
	return ""
}

func (r reply) text() string {
	b, _ := json.Marshal(r.body)
	return string(b)
}

func (l *lab) do(t testing.TB, method, path, body string, header ...string) reply {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, l.srv.URL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := l.srv.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	r := reply{status: resp.StatusCode, header: resp.Header}
	_ = json.Unmarshal(b, &r.body)
	return r
}

// token gets an access token for the resource.
func (l *lab) token(t testing.TB, resource string) string {
	t.Helper()
	r := l.grant(t, url.Values{"scope": {resource + "/.default"}})
	token, ok := r.body["access_token"].(string)
	if !ok {
		t.Fatalf("token: %s", r.text())
	}
	return token
}

func (l *lab) grant(t testing.TB, change url.Values) reply {
	form := url.Values{"grant_type": {"client_credentials"}, "client_id": {l.me.ClientID}, "client_secret": {l.secret}, "scope": {"https://vault.azure.net/.default"}}
	for name, v := range change {
		form[name] = v
	}
	return l.do(t, "POST", "/"+l.Tenant()+"/oauth2/v2.0/token", form.Encode())
}

const vault = "https://vault.azure.net"

func (l *lab) ask(t testing.TB, method, path, body string) reply {
	t.Helper()
	return l.do(t, method, path+"?api-version=7.4", body, "Authorization", "Bearer "+l.token(t, vault))
}

func (l *lab) operate(t testing.TB, path, alg string, value []byte) reply {
	t.Helper()
	return l.ask(t, "POST", path, `{"alg":"`+alg+`","value":"`+base64.RawURLEncoding.EncodeToString(value)+`"}`)
}

func TestTokensAreVerified(t *testing.T) {
	l := newLab(t, azurekvtest.Config{})
	l.CreateKey("kek")
	brief := newLab(t, azurekvtest.Config{TokenLife: -time.Second})
	brief.CreateKey("kek")
	good := l.token(t, vault)
	head, rest, _ := strings.Cut(good, ".")
	body, signature, _ := strings.Cut(rest, ".")
	for name, test := range map[string]struct {
		lab   *lab
		token string
		says  string
	}{
		"none":                    {l, "", "AKV10000"},
		"no JWT":                  {l, "Bearer x", "BearerReadAccessTokenFailed"},
		"another server's":        {l, "Bearer " + brief.token(t, vault), "BearerReadAccessTokenFailed"},
		"without a signature":     {l, "Bearer " + base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none"}`)) + "." + body + ".", "BearerReadAccessTokenFailed"},
		"with another's claims":   {l, "Bearer " + head + "." + strings.Repeat("A", len(body)) + "." + signature, "BearerReadAccessTokenFailed"},
		"for another resource":    {l, "Bearer " + l.token(t, "https://management.azure.com"), "AKV10022"},
		"for a Managed HSM":       {l, "Bearer " + l.token(t, "https://managedhsm.azure.net"), "AKV10022"},
		"one that has ended":      {brief, "Bearer " + brief.token(t, vault), "TokenExpired"},
		"not sent as it ought to": {l, "Basic " + good, "AKV10000"},
	} {
		r := test.lab.do(t, "GET", "/keys/kek?api-version=7.4", "", "Authorization", test.token)
		challenge := r.header.Get("WWW-Authenticate")
		if r.status != http.StatusUnauthorized || !strings.Contains(r.text(), test.says) || !strings.Contains(challenge, `resource="https://vault.azure.net"`) {
			t.Errorf("a token %s: %d %s, challenge %q; want %s", name, r.status, r.text(), challenge, test.says)
		}
	}
	if r := l.do(t, "GET", "/keys/kek?api-version=7.4", "", "Authorization", "Bearer "+good); r.status != http.StatusOK || r.header.Get("X-Ms-Request-Id") == "" {
		t.Errorf("a good token: %d %s", r.status, r.text())
	}
}

func TestEntraRefuses(t *testing.T) {
	l := newLab(t, azurekvtest.Config{})
	for name, test := range map[string]struct {
		change url.Values
		code   string
	}{
		"a wrong secret":           {url.Values{"client_secret": {"x"}}, "invalid_client"},
		"no secret":                {url.Values{"client_secret": nil}, "invalid_client"},
		"an unknown client":        {url.Values{"client_id": {"x"}}, "unauthorized_client"},
		"another grant":            {url.Values{"grant_type": {"password"}}, "unsupported_grant_type"},
		"a scope that is no scope": {url.Values{"scope": {vault}}, "invalid_scope"},
		"an assertion of no type":  {url.Values{"client_assertion": {"x"}}, "invalid_request"},
		"an assertion of nobody's": {url.Values{"client_assertion": {"x"}, "client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"}}, "invalid_client"},
	} {
		if r := l.grant(t, test.change); r.status < 400 || r.code() != test.code {
			t.Errorf("%s: %d %s, want %s", name, r.status, r.text(), test.code)
		}
	}
}

func TestTheMetadataServiceRefuses(t *testing.T) {
	l := newLab(t, azurekvtest.Config{})
	path := "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=" + vault
	for name, test := range map[string]struct {
		path   string
		header []string
		status int
	}{
		"no header":          {path, nil, 400},
		"a forwarded one":    {path, []string{"Metadata", "true", "X-Forwarded-For", "127.0.0.1"}, 400},
		"no resource":        {"/metadata/identity/oauth2/token?api-version=2018-02-01", []string{"Metadata", "true"}, 400},
		"another's identity": {path + "&client_id=x", []string{"Metadata", "true"}, 400},
		"a good one":         {path, []string{"Metadata", "true"}, 200},
	} {
		if r := l.do(t, "GET", test.path, "", test.header...); r.status != test.status {
			t.Errorf("%s: %d %s, want %d", name, r.status, r.text(), test.status)
		}
	}
}

func TestTheVaultRefuses(t *testing.T) {
	l := newLab(t, azurekvtest.Config{})
	now := time.Now()
	v := l.CreateKey("kek")
	other := l.CreateKey("other")
	l.SetValidity("other", "", time.Time{}, now.Add(-time.Hour))
	l.CreateKey("early")
	l.SetValidity("early", "", now.Add(time.Hour), time.Time{})
	l.CreateKey("off")
	l.SetEnabled("off", "", false)
	l.CreateKeyOf("signer", azurekvtest.RSA, 2048, "sign")
	l.CreateKeyOf("curve", azurekvtest.EC, 256)
	l.CreateKey("deleted")
	l.Delete("deleted", now.Add(time.Hour))
	const oaep = "RSA-OAEP-256"
	wrapped := make([]byte, 256)
	for name, test := range map[string]struct {
		reply reply
		code  string
	}{
		"a damaged ciphertext":               {l.operate(t, "/keys/kek/"+v+"/unwrapkey", oaep, wrapped), "BadParameter"},
		"a ciphertext that is cut":           {l.operate(t, "/keys/kek/"+v+"/unwrapkey", oaep, wrapped[:255]), "BadParameter"},
		"no value":                           {l.operate(t, "/keys/kek/"+v+"/unwrapkey", oaep, nil), "BadParameter"},
		"more than RSA takes":                {l.operate(t, "/keys/kek/wrapkey", oaep, wrapped[:191]), "BadParameter"},
		"another algorithm":                  {l.operate(t, "/keys/kek/wrapkey", "A256KW", wrapped), "BadParameter"},
		"an elliptic curve key":              {l.operate(t, "/keys/curve/wrapkey", oaep, wrapped[:32]), "BadParameter"},
		"no JSON":                            {l.ask(t, "POST", "/keys/kek/wrapkey", "x"), "BadParameter"},
		"a key that signs":                   {l.operate(t, "/keys/signer/wrapkey", oaep, wrapped[:32]), "KeyOperationForbidden"},
		"an unknown key":                     {l.operate(t, "/keys/none/wrapkey", oaep, wrapped[:32]), "KeyNotFound"},
		"an unknown version":                 {l.operate(t, "/keys/kek/"+strings.Repeat("0", 32)+"/unwrapkey", oaep, wrapped), "KeyNotFound"},
		"another key's version":              {l.operate(t, "/keys/kek/"+other+"/unwrapkey", oaep, wrapped), "KeyNotFound"},
		"a deleted key":                      {l.ask(t, "GET", "/keys/deleted", ""), "KeyNotFound"},
		"a key that was not deleted":         {l.ask(t, "GET", "/deletedkeys/kek", ""), "KeyNotFound"},
		"a disabled key":                     {l.operate(t, "/keys/off/wrapkey", oaep, wrapped[:32]), "KeyDisabled"},
		"a look at a disabled key":           {l.ask(t, "GET", "/keys/off", ""), "KeyDisabled"},
		"wrapping with an expired key":       {l.operate(t, "/keys/other/wrapkey", oaep, wrapped[:32]), "KeyExpired"},
		"unwrapping with it, what it cannot": {l.operate(t, "/keys/other/"+other+"/unwrapkey", oaep, wrapped), "BadParameter"},
		"wrapping with a key of tomorrow":    {l.operate(t, "/keys/early/wrapkey", oaep, wrapped[:32]), "KeyNotYetValid"},
		"no api-version":                     {l.do(t, "GET", "/keys/kek", "", "Authorization", "Bearer "+l.token(t, vault)), "BadParameter"},
	} {
		if test.reply.code() != test.code {
			t.Errorf("%s: %d %s, want %s", name, test.reply.status, test.reply.text(), test.code)
		}
	}
	l.me.Allow = []string{"keys/get"}
	l.AddPrincipal(l.me)
	if r := l.operate(t, "/keys/kek/wrapkey", oaep, wrapped[:32]); r.status != 403 || r.code() != "ForbiddenByPolicy" || !strings.Contains(r.text(), "keys wrapKey permission") {
		t.Errorf("a caller without keys/wrapKey: %d %s", r.status, r.text())
	}
	last := l.Log()[len(l.Log())-1]
	if last.Action != "WrapKey" || last.Principal != l.me.ClientID || last.Key != "kek" || last.Code != "Forbidden" || last.RequestID == "" {
		t.Errorf("the call was logged as %+v", last)
	}
}

// TestDifferencesFromAzure lists where the stand-in knowingly differs from
// Azure, and shows each.
func TestDifferencesFromAzure(t *testing.T) {
	l := newLab(t, azurekvtest.Config{})
	v := l.CreateKey("kek")
	for _, difference := range []struct {
		words string
		shown func(t *testing.T) bool
	}{
		{"keys are made, rotated, disabled and deleted by the test alone, not over REST", func(t *testing.T) bool {
			return l.ask(t, "POST", "/keys/kek/create", `{"kty":"RSA"}`).status == 404
		}},
		{"of a key's operations there are wrapKey and unwrapKey, with RSA-OAEP-256 and A256KW", func(t *testing.T) bool {
			return l.operate(t, "/keys/kek/"+v+"/encrypt", "RSA-OAEP-256", []byte("x")).status == 404 &&
				l.operate(t, "/keys/kek/"+v+"/wrapkey", "RSA-OAEP", []byte("x")).code() == "BadParameter"
		}},
		{"any api-version will do", func(t *testing.T) bool {
			return l.do(t, "GET", "/keys/kek?api-version=1", "", "Authorization", "Bearer "+l.token(t, vault)).status == 200
		}},
		{"keys' names tell upper and lower case apart", func(t *testing.T) bool {
			return l.ask(t, "GET", "/keys/KEK", "").code() == "KeyNotFound"
		}},
		{"one server is one vault, whatever host is asked", func(t *testing.T) bool {
			return !strings.Contains(l.srv.URL, l.Host()) && strings.Contains(l.ask(t, "GET", "/keys/kek", "").text(), l.Host())
		}},
		{"RSA keys come round again after three versions", func(t *testing.T) bool {
			modulus := func() any { return l.ask(t, "GET", "/keys/kek", "").body["key"].(map[string]any)["n"] }
			first := modulus()
			l.Rotate("kek")
			if modulus() == first {
				return false
			}
			l.Rotate("kek")
			l.Rotate("kek")
			return modulus() == first
		}},
		{"a rotation policy never comes to pass", func(t *testing.T) bool {
			l.SetRotation("kek", "PT0S")
			before := l.ask(t, "GET", "/keys/kek", "").text()
			return l.ask(t, "GET", "/keys/kek", "").text() == before
		}},
		{"access tokens are signed with ES256, by a key that is not published", func(t *testing.T) bool {
			header, _, _ := strings.Cut(l.token(t, vault), ".")
			b, _ := base64.RawURLEncoding.DecodeString(header)
			return strings.Contains(string(b), "ES256") && l.do(t, "GET", "/"+l.Tenant()+"/discovery/v2.0/keys", "").status == 404
		}},
		{"there is no claims challenge: a token is good until it ends", func(t *testing.T) bool {
			return !strings.Contains(l.do(t, "GET", "/keys/kek?api-version=7.4", "").header.Get("WWW-Authenticate"), "claims")
		}},
		{"the metadata service answers over https too", func(t *testing.T) bool {
			return l.srv.TLS.MinVersion <= tls.VersionTLS12 &&
				l.do(t, "GET", "/metadata/identity/oauth2/token?api-version=x&resource="+vault, "", "Metadata", "true").status == 200
		}},
		{"a rate has no limit: throttling comes only from SetFault", func(t *testing.T) bool {
			for range 100 {
				if l.ask(t, "GET", "/keys/kek", "").status != 200 {
					return false
				}
			}
			return true
		}},
	} {
		t.Run(difference.words, func(t *testing.T) {
			if !difference.shown(t) {
				t.Error("no such difference")
			}
		})
	}
}

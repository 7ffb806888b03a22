// Package azurekvtest is a server that stands in for Azure Key Vault, for
// Microsoft Entra ID's token endpoint and for the instance metadata service of a
// machine in tests: their REST APIs on one [http.Handler], to be called by any of
// Azure's SDKs. It is as strict as Azure where a client could be wrong:
// challenges, tokens and their end, audiences, federated assertions,
// permissions, key states, damaged ciphertexts. Faults come on demand, and every
// call is counted.
//
// Keys live in memory and end with the [Server]. Paths, field names and error
// codes are those of the [API reference]; where the server knowingly differs
// from Azure, TestDifferencesFromAzure lists and shows it.
//
// It is not for production: it guards nothing.
//
// [API reference]: https://learn.microsoft.com/rest/api/keyvault/keys/
package azurekvtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"time"
)

// Config describes a [Server]. The zero value is ready to use.
type Config struct {
	// Host is the vault's name in the world, "kube-kek.vault.azure.net" if empty.
	// One of managedhsm.azure.net makes a Managed HSM, which has oct-HSM keys.
	Host string

	Tenant string // a UUID; one is made up if it is empty

	// TokenLife is how long access tokens are valid, an hour if it is 0.
	TokenLife time.Duration

	// ShowsDisabled makes GetKey answer with a disabled key, where a vault
	// refuses.
	ShowsDisabled bool
}

// Server is the stand-in. Its methods may be called at any time, also while
// requests are under way.
type Server struct {
	config Config
	signer *ecdsa.PrivateKey // of access tokens

	mu         sync.Mutex
	principals map[string]*Principal // by client ID
	system     string                // client ID of the machine's own identity
	keys       map[string]*key       // by name
	faults     []*Fault
	unhang     chan struct{} // closed when the faults change
	calls      []*Call
}

// New returns a server that knows no principal and no key.
func New(c Config) *Server {
	if c.Host == "" {
		c.Host = "kube-kek.vault.azure.net"
	}
	if c.Tenant == "" {
		c.Tenant = newUUID()
	}
	if c.TokenLife == 0 {
		c.TokenLife = time.Hour
	}
	signer, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err) // crypto/rand does not fail
	}
	return &Server{
		config: c, signer: signer,
		principals: map[string]*Principal{}, keys: map[string]*key{}, unhang: make(chan struct{}),
	}
}

// StartTLS serves s on a free loopback port over https, under a certificate that
// no one trusts unless told to: the result's Certificate. The vault and Entra ID
// are there. The caller closes the result.
func (s *Server) StartTLS() *httptest.Server {
	srv := httptest.NewUnstartedServer(s)
	srv.EnableHTTP2 = true
	srv.Config.ErrorLog = log.New(io.Discard, "", 0) // of connections that clients leave
	srv.StartTLS()
	return srv
}

// Start serves s on a free loopback port in clear, as machines have their
// metadata service. The caller closes the result.
func (s *Server) Start() *httptest.Server { return httptest.NewServer(s) }

// Host returns the vault's name.
func (s *Server) Host() string { return s.config.Host }

// Tenant returns the tenant's ID.
func (s *Server) Tenant() string { return s.config.Tenant }

func (s *Server) hsm() bool { return strings.Contains(s.config.Host, ".managedhsm.") }

// resource is the audience of the vault's tokens: "https://vault.azure.net".
func (s *Server) resource() string {
	_, domain, _ := strings.Cut(s.config.Host, ".")
	return "https://" + domain
}

// The actions of [Call] and [Fault] beside those that carry the names of the
// SDK's methods: GetKey, GetDeletedKey, GetKeyRotationPolicy, WrapKey, UnwrapKey.
const (
	ActionDiscovery = "Discovery" // Entra ID's OpenID configuration
	ActionToken     = "Token"     // Entra ID's token endpoint
	ActionMetadata  = "Metadata"  // the metadata service's token endpoint
)

// Call is a request that was received, whatever became of it.
type Call struct {
	Action    string
	Principal string // the caller's client ID; empty if it was not authenticated
	Key       string // its name
	Version   string // as it was sent
	RequestID string
	Code      string // the error code of the reply; empty for success, and while no reply was sent
}

// Log returns the calls since the start or the last ResetCalls, in order of arrival.
func (s *Server) Log() []Call {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Call, len(s.calls))
	for i, c := range s.calls {
		out[i] = *c
	}
	return out
}

// Calls counts the calls of an action; "" counts all.
func (s *Server) Calls(action string) int {
	n := 0
	for _, c := range s.Log() {
		if action == "" || action == c.Action {
			n++
		}
	}
	return n
}

// ResetCalls forgets the calls so far.
func (s *Server) ResetCalls() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = nil
}

// refusal is an answer that says no. Key Vault and Entra ID word it differently.
type refusal struct {
	status               int
	code, inner, message string
}

func refuse(status int, code, format string, args ...any) *refusal {
	return &refusal{status: status, code: code, message: fmt.Sprintf(format, args...)}
}

func (r refusal) within(inner string) *refusal {
	r.inner = inner
	return &r
}

// write answers as Key Vault does, or as Entra ID and the metadata service do.
func (r *refusal) write(w http.ResponseWriter, action string) {
	body := map[string]any{"error": r.code, "error_description": r.message}
	switch action {
	case ActionDiscovery, ActionToken, ActionMetadata:
	default:
		e := map[string]any{"code": r.code, "message": r.message}
		if r.inner != "" {
			e["innererror"] = map[string]string{"code": r.inner}
		}
		body = map[string]any{"error": e}
	}
	writeJSON(w, r.status, body)
}

func writeJSON(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // an error here is a client that has gone
}

// maxBody is far above any request that Key Vault accepts.
const maxBody = 1 << 20

// request is what a handler knows of the request that it answers.
type request struct {
	*http.Request
	body []byte
	call *Call
}

// route names the action of a request, and the handler that answers it.
func (s *Server) route(r *http.Request) (Call, func(request) (any, *refusal)) {
	path := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	get, post := r.Method == http.MethodGet, r.Method == http.MethodPost
	switch {
	case get && r.URL.Path == "/metadata/identity/oauth2/token":
		return Call{Action: ActionMetadata}, s.metadata
	case get && r.URL.Path == "/"+s.config.Tenant+"/v2.0/.well-known/openid-configuration":
		return Call{Action: ActionDiscovery}, s.discovery
	case post && r.URL.Path == "/"+s.config.Tenant+"/oauth2/v2.0/token":
		return Call{Action: ActionToken}, s.token
	case get && len(path) == 2 && path[0] == "deletedkeys":
		return Call{Action: "GetDeletedKey", Key: path[1]}, s.vault(s.getDeletedKey)
	case get && len(path) == 3 && path[0] == "keys" && path[2] == "rotationpolicy":
		return Call{Action: "GetKeyRotationPolicy", Key: path[1]}, s.vault(s.getKeyRotationPolicy)
	case get && (len(path) == 2 || len(path) == 3) && path[0] == "keys":
		return Call{Action: "GetKey", Key: path[1], Version: strings.Join(path[2:], "")}, s.vault(s.getKey)
	case post && (len(path) == 3 || len(path) == 4) && path[0] == "keys":
		c := Call{Key: path[1], Version: strings.Join(path[2:len(path)-1], "")}
		switch path[len(path)-1] {
		case "wrapkey":
			c.Action = "WrapKey"
			return c, s.vault(s.wrapKey)
		case "unwrapkey":
			c.Action = "UnwrapKey"
			return c, s.vault(s.unwrapKey)
		}
	}
	return Call{}, nil
}

// ServeHTTP answers for all three services, told apart by their paths.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	call, answer := s.route(r)
	call.RequestID = newUUID()
	w.Header().Set("x-ms-request-id", call.RequestID)
	if err != nil || answer == nil {
		refuse(http.StatusNotFound, "NotFound", "azurekvtest has no %s %s", r.Method, r.URL.Path).write(w, "")
		return
	}
	who, unauthorized := s.authenticate(r, call.Action)
	call.Principal = who
	c := s.record(call)
	if s.applyFault(w, r, c) {
		return
	}
	reply, refused := any(nil), unauthorized
	if refused == nil {
		reply, refused = answer(request{r, body, c})
	}
	if refused == nil {
		writeJSON(w, http.StatusOK, reply)
		return
	}
	s.setCode(c, refused.code)
	if refused.status == http.StatusUnauthorized {
		s.challenge(w, call.Action)
	}
	refused.write(w, call.Action)
}

func (s *Server) challenge(w http.ResponseWriter, action string) {
	if action != ActionToken {
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer authorization="https://login.microsoftonline.com/%s", resource="%s"`, s.config.Tenant, s.resource()))
	}
}

func (s *Server) record(c Call) *Call {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = append(s.calls, &c)
	return &c
}

func (s *Server) setCode(c *Call, code string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.Code = code
}

func newUUID() string {
	h := newVersion()
	return h[:8] + "-" + h[8:12] + "-4" + h[13:16] + "-8" + h[17:20] + "-" + h[20:]
}

// newVersion returns 32 hex digits.
func newVersion() string { return hex.EncodeToString(randomBytes(16)) }

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

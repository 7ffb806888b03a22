// Package awskmstest is a server that stands in for AWS KMS and AWS STS in
// tests: AWS JSON 1.1 and the STS query protocol on one [http.Handler], to be
// called by any AWS SDK. It is as strict as AWS where a client could be wrong:
// signatures, sessions and their end, policies, key states, encryption contexts,
// damaged ciphertexts. Faults come on demand, and every call is counted.
//
// Keys live in memory and end with the [Server]. Field names, limits and error
// codes are those of the [API reference]; where the server knowingly differs
// from AWS, TestDifferencesFromAWS lists and shows it.
//
// It is not for production: it guards nothing.
//
// [API reference]: https://docs.aws.amazon.com/kms/latest/APIReference/
package awskmstest

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"time"
)

// Config describes a [Server]. The zero value is ready to use.
type Config struct {
	Region  string // "eu-west-1" if empty
	Account string // twelve digits; "111122223333" if empty

	// WithoutMaterialIDs leaves key material IDs out of every reply, as
	// endpoints do that are older than AWS's on-demand rotation.
	WithoutMaterialIDs bool
}

// Server is the stand-in. Its methods may be called at any time, also while
// requests are under way.
type Server struct {
	config  Config
	actions map[string]action

	mu         sync.Mutex
	principals map[string]Principal // by access key ID
	roles      map[string]Role      // by ARN
	keys       map[string]*key      // by key ID
	aliases    map[string]string    // alias/NAME to key ID
	faults     []*Fault
	unhang     chan struct{} // closed when the faults change
	calls      []*Call
}

// New returns a server that knows no principal and no key.
func New(c Config) *Server {
	if c.Region == "" {
		c.Region = "eu-west-1"
	}
	if c.Account == "" {
		c.Account = "111122223333"
	}
	s := &Server{
		config:     c,
		principals: map[string]Principal{},
		roles:      map[string]Role{},
		keys:       map[string]*key{},
		aliases:    map[string]string{},
		unhang:     make(chan struct{}),
	}
	s.actions = s.kmsActions()
	return s
}

// Start serves s on a free loopback port. The caller closes the result.
func (s *Server) Start() *httptest.Server { return httptest.NewServer(s) }

// StartTLS is Start with https, under a certificate that no one trusts unless
// told to: the result's Certificate.
func (s *Server) StartTLS() *httptest.Server { return httptest.NewTLSServer(s) }

// Env returns the SDKs' environment variables ("NAME=value") under which a
// process talks to the server at url as p. They name each service, since the Go
// SDK passes over AWS_ENDPOINT_URL where it exchanges a web identity.
func (s *Server) Env(url string, p Principal) []string {
	return []string{
		"AWS_ENDPOINT_URL_KMS=" + url,
		"AWS_ENDPOINT_URL_STS=" + url,
		"AWS_REGION=" + s.config.Region,
		"AWS_ACCESS_KEY_ID=" + p.AccessKeyID,
		"AWS_SECRET_ACCESS_KEY=" + p.SecretAccessKey,
		"AWS_SESSION_TOKEN=" + p.SessionToken,
		"AWS_EC2_METADATA_DISABLED=true",
	}
}

// Call is a request that was received, whatever became of it.
type Call struct {
	Action    string // "Decrypt", "AssumeRole", …
	Principal string // the caller's ARN; empty if it was not authenticated
	KeyID     string // the KeyId of the request, as it was sent
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
func (s *Server) Calls(action string) int { return s.CallsBy("", action) }

// CallsBy counts the calls of an action by the principal with that ARN; "" counts all.
func (s *Server) CallsBy(principal, action string) int {
	n := 0
	for _, c := range s.Log() {
		if (action == "" || action == c.Action) && (principal == "" || principal == c.Principal) {
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

// apiError is a refusal as AWS words it.
type apiError struct {
	status        int
	code, message string
}

func refuse(code, format string, args ...any) *apiError {
	return &apiError{statusOf(code), code, fmt.Sprintf(format, args...)}
}

// statusOf is the HTTP status of a code: AWS JSON answers 400 to most mistakes.
func statusOf(code string) int {
	switch code {
	case "KMSInternalException", "KeyUnavailableException", "InternalFailure":
		return http.StatusInternalServerError
	case "DependencyTimeoutException", "ServiceUnavailableException":
		return http.StatusServiceUnavailable
	case "AccessDenied", "InvalidClientTokenId", "SignatureDoesNotMatch", "ExpiredToken", "MissingAuthenticationToken":
		return http.StatusForbidden
	}
	return http.StatusBadRequest
}

// caller is what a handler knows of the request that it answers.
type caller struct {
	Principal
	requestID string
}

// maxBody is far above any request that KMS accepts.
const maxBody = 1 << 20

// ServeHTTP answers KMS to requests with an X-Amz-Target and STS to the others.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		http.Error(w, "reading the request", http.StatusRequestEntityTooLarge)
		return
	}
	requestID := newUUID()
	w.Header().Set("x-amzn-RequestId", requestID)
	if r.Method != http.MethodPost || r.URL.Path != "/" {
		http.Error(w, "awskmstest answers POST / only", http.StatusNotFound)
		return
	}
	if target, ok := strings.CutPrefix(r.Header.Get("X-Amz-Target"), "TrentService."); ok {
		s.serveKMS(w, r, body, target, requestID)
		return
	}
	s.serveSTS(w, r, body, requestID)
}

func (s *Server) serveKMS(w http.ResponseWriter, r *http.Request, body []byte, target, requestID string) {
	p, refused := s.authenticate(r, body, "kms")
	call := s.record(target, p, requestID, body)
	if s.applyFault(w, r, call, writeJSONError) {
		return
	}
	var reply any
	if refused == nil {
		if do, ok := s.actions[target]; ok {
			reply, refused = do(caller{p, requestID}, body)
		} else {
			refused = refuse("UnknownOperationException", "awskmstest has no %s", target)
		}
	}
	if refused != nil {
		s.setCode(call, refused.code)
		writeJSONError(w, requestID, refused)
		return
	}
	w.Header().Set("Content-Type", jsonType)
	_ = json.NewEncoder(w).Encode(reply) // an error here is a client that has gone
}

const jsonType = "application/x-amz-json-1.1"

func writeJSONError(w http.ResponseWriter, _ string, e *apiError) {
	w.Header().Set("Content-Type", jsonType)
	w.WriteHeader(e.status)
	reply := map[string]string{"__type": e.code}
	if e.message != "" {
		reply["message"] = e.message
	}
	_ = json.NewEncoder(w).Encode(reply)
}

func (s *Server) record(action string, p Principal, requestID string, body []byte) *Call {
	var in struct{ KeyId string }
	_ = json.Unmarshal(body, &in) // STS sends forms: no key
	call := &Call{Action: action, Principal: p.ARN, KeyID: in.KeyId, RequestID: requestID}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = append(s.calls, call)
	return call
}

func (s *Server) setCode(c *Call, code string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.Code = code
}

// action answers one operation of KMS.
type action func(c caller, body []byte) (any, *apiError)

// handle makes an action of a function on the decoded request, which runs under
// the server's lock. The caller needs the permissions, "kms:" + the action's
// name if none is given.
func handle[In any](s *Server, do func(In) (any, *apiError), permissions ...string) action {
	return func(c caller, body []byte) (any, *apiError) {
		var in In
		d := json.NewDecoder(bytes.NewReader(body))
		// A parameter that changes what AWS does must not be passed over.
		d.DisallowUnknownFields()
		if err := d.Decode(&in); err != nil {
			return nil, refuse("SerializationException", "%v", err)
		}
		for _, permission := range permissions {
			if !c.may(permission) {
				return nil, denied(c.Principal, permission)
			}
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		return do(in)
	}
}

func denied(p Principal, permission string) *apiError {
	return refuse("AccessDeniedException",
		"User: %s is not authorized to perform: %s because no identity-based policy allows the %s action", p.ARN, permission, permission)
}

// epoch is a time as AWS JSON has it: seconds since 1970, with a fraction.
type epoch struct{ time.Time }

func (e epoch) MarshalJSON() ([]byte, error) {
	return fmt.Appendf(nil, "%d.%03d", e.Unix(), e.Nanosecond()/int(time.Millisecond)), nil
}

func newUUID() string {
	b := randomBytes(16)
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return uuidString(b)
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

// allows reports whether a list of actions, "kms:*" and "*" among them, has the action.
func allows(list []string, action string) bool {
	service, _, _ := strings.Cut(action, ":")
	return slices.ContainsFunc(list, func(a string) bool {
		return a == action || a == "*" || a == service+":*"
	})
}

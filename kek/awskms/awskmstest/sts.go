package awskmstest

import (
	"crypto"
	"encoding/base64"
	"encoding/xml"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Role is what AssumeRole and AssumeRoleWithWebIdentity give sessions of.
type Role struct {
	ARN   string   // arn:aws:iam::ACCOUNT:role/NAME
	Allow []string // as Principal.Allow

	Trusts     []string // the ARNs of the principals that may assume it
	ExternalID string   // that they must give, if set

	WebIdentity *Issuer // whose tokens may assume it; nil: none

	// Lifetime of a session; 0 is what the caller asks for (15 minutes or more).
	Lifetime time.Duration
}

// Issuer is an OpenID Connect provider and what its tokens must say.
type Issuer struct {
	URL      string
	Audience string
	Subject  string           // "": anyone
	Key      crypto.PublicKey // *rsa.PublicKey for RS256, *ecdsa.PublicKey (P-256) for ES256
}

// AddRole makes a role known, in place of one with the same ARN.
func (s *Server) AddRole(r Role) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.roles[r.ARN] = r
}

func (s *Server) serveSTS(w http.ResponseWriter, r *http.Request, body []byte, requestID string) {
	form, err := url.ParseQuery(string(body))
	if err != nil {
		writeXMLError(w, requestID, refuse("MalformedQueryString", "the body is no form"))
		return
	}
	action := form.Get("Action")
	var p Principal
	var refused *apiError
	if action != "AssumeRoleWithWebIdentity" { // which is not signed: the token vouches for the caller
		if p, refused = s.authenticate(r, body, "sts"); refused != nil {
			code := stsCode(refused.code)
			refused = &apiError{statusOf(code), code, refused.message}
		}
	}
	call := s.record(action, p, requestID, nil)
	if s.applyFault(w, r, call, writeXMLError) {
		return
	}
	var reply any
	if refused == nil {
		switch action {
		case "GetCallerIdentity":
			reply = callerIdentity{resultName(form), p.ARN, p.AccessKeyID, s.config.Account}
		case "AssumeRole":
			reply, refused = s.assumeRole(p, form)
		case "AssumeRoleWithWebIdentity":
			reply, refused = s.assumeRoleWithWebIdentity(form)
		default:
			refused = refuse("InvalidAction", "Could not find operation %s", action)
		}
	}
	if refused != nil {
		s.setCode(call, refused.code)
		writeXMLError(w, requestID, refused)
		return
	}
	writeXML(w, http.StatusOK, envelope{
		XMLName:   xml.Name{Space: stsNamespace, Local: action + "Response"},
		Result:    reply,
		RequestID: requestID,
	})
}

// stsCode is STS's name for a code of AWS JSON.
func stsCode(code string) string {
	switch code {
	case "UnrecognizedClientException":
		return "InvalidClientTokenId"
	case "InvalidSignatureException":
		return "SignatureDoesNotMatch"
	}
	return strings.TrimSuffix(code, "Exception")
}

const stsNamespace = "https://sts.amazonaws.com/doc/2011-06-15/"

type envelope struct {
	XMLName   xml.Name
	Result    any
	RequestID string `xml:"ResponseMetadata>RequestId"`
}

type errorEnvelope struct {
	XMLName   xml.Name `xml:"https://sts.amazonaws.com/doc/2011-06-15/ ErrorResponse"`
	Type      string   `xml:"Error>Type"`
	Code      string   `xml:"Error>Code"`
	Message   string   `xml:"Error>Message"`
	RequestID string   `xml:"RequestId"`
}

func writeXML(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "text/xml")
	w.WriteHeader(status)
	_ = xml.NewEncoder(w).Encode(v)
}

func writeXMLError(w http.ResponseWriter, requestID string, e *apiError) {
	writeXML(w, e.status, errorEnvelope{Type: "Sender", Code: e.code, Message: e.message, RequestID: requestID})
}

// resultName is the element that holds the reply to the form's action.
func resultName(form url.Values) xml.Name { return xml.Name{Local: form.Get("Action") + "Result"} }

type callerIdentity struct {
	XMLName              xml.Name
	Arn, UserId, Account string
}

type assumedRole struct {
	XMLName         xml.Name
	Credentials     sessionCredentials
	AssumedRoleUser struct{ AssumedRoleId, Arn string }
}

type sessionCredentials struct {
	AccessKeyId, SecretAccessKey, SessionToken string
	Expiration                                 time.Time
}

func (s *Server) assumeRole(p Principal, form url.Values) (any, *apiError) {
	role, ok := s.role(form)
	if !ok || !p.may("sts:AssumeRole") || !slices.Contains(role.Trusts, p.ARN) || role.ExternalID != "" && role.ExternalID != form.Get("ExternalId") {
		return nil, refuse("AccessDenied", "User: %s is not authorized to perform: sts:AssumeRole on resource: %s", p.ARN, form.Get("RoleArn"))
	}
	return s.newSession(role, form)
}

func (s *Server) assumeRoleWithWebIdentity(form url.Values) (any, *apiError) {
	role, ok := s.role(form)
	if !ok || role.WebIdentity == nil {
		return nil, refuse("AccessDenied", "Not authorized to perform sts:AssumeRoleWithWebIdentity")
	}
	if refused := role.WebIdentity.verify(form.Get("WebIdentityToken")); refused != nil {
		return nil, refused
	}
	return s.newSession(role, form)
}

func (s *Server) role(form url.Values) (Role, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	role, ok := s.roles[form.Get("RoleArn")]
	return role, ok
}

// newSession makes a temporary principal of a role.
func (s *Server) newSession(role Role, form url.Values) (any, *apiError) {
	seconds := 3600
	if asked := form.Get("DurationSeconds"); asked != "" {
		n, err := strconv.Atoi(asked)
		if err != nil || n < 900 || n > 12*3600 {
			return nil, refuse("ValidationError", "Value '%s' at 'durationSeconds' must be between 900 and 43200", asked)
		}
		seconds = n
	}
	lifetime := time.Duration(seconds) * time.Second
	if role.Lifetime > 0 {
		lifetime = role.Lifetime
	}
	name := form.Get("RoleSessionName")
	if name == "" {
		return nil, refuse("ValidationError", "Value null at 'roleSessionName' failed to satisfy constraint: Member must not be null")
	}
	_, roleName, _ := strings.Cut(role.ARN, ":role/")
	p := s.AddPrincipal(Principal{
		SessionToken: base64.StdEncoding.EncodeToString(randomBytes(150)),
		Expires:      time.Now().Add(lifetime),
		ARN:          "arn:aws:sts::" + s.config.Account + ":assumed-role/" + roleName + "/" + name,
		Allow:        role.Allow,
	})
	out := assumedRole{
		XMLName:     resultName(form),
		Credentials: sessionCredentials{p.AccessKeyID, p.SecretAccessKey, p.SessionToken, p.Expires.UTC()},
	}
	out.AssumedRoleUser.Arn, out.AssumedRoleUser.AssumedRoleId = p.ARN, "AROA"+p.AccessKeyID[4:]+":"+name
	return out, nil
}

package awskmstest

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"encoding/base64"
	"encoding/hex"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

// maxClockSkew is how far the time of a signature may be from the server's.
const maxClockSkew = 5 * time.Minute

// Principal is someone who may call.
type Principal struct {
	AccessKeyID     string
	SecretAccessKey string
	SessionToken    string    // of temporary credentials
	Expires         time.Time // zero: never
	ARN             string

	// Allow lists the actions that the principal's policy permits:
	// "kms:Decrypt", "kms:*", "sts:AssumeRole", "*". Nothing else is permitted.
	Allow []string
}

func (p Principal) may(action string) bool { return allows(p.Allow, action) }

// AddPrincipal makes p known, in place of one with the same AccessKeyID, and
// returns it. Empty credentials and ARN are made up.
func (s *Server) AddPrincipal(p Principal) Principal {
	if p.AccessKeyID == "" {
		prefix := "AKIA"
		if p.SessionToken != "" {
			prefix = "ASIA"
		}
		p.AccessKeyID = prefix + base32.StdEncoding.EncodeToString(randomBytes(10))
	}
	if p.SecretAccessKey == "" {
		p.SecretAccessKey = base64.StdEncoding.EncodeToString(randomBytes(30))
	}
	if p.ARN == "" {
		p.ARN = "arn:aws:iam::" + s.config.Account + ":user/" + strings.ToLower(p.AccessKeyID)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.principals[p.AccessKeyID] = p
	return p
}

// RemovePrincipal forgets the credentials with that access key ID.
func (s *Server) RemovePrincipal(accessKeyID string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.principals, accessKeyID)
}

// authenticate checks a request's signature by signing it again with the SDK's
// own signer. The codes are those of AWS JSON; STS has names of its own for them.
func (s *Server) authenticate(r *http.Request, body []byte, service string) (Principal, *apiError) {
	header := r.Header.Get("Authorization")
	if header == "" {
		return Principal{}, refuse("MissingAuthenticationTokenException", "Missing Authentication Token")
	}
	auth, ok := parseAuthorization(header)
	if !ok {
		return Principal{}, refuse("IncompleteSignatureException", "Authorization header is not a complete AWS4-HMAC-SHA256 signature")
	}
	s.mu.Lock()
	p, known := s.principals[auth.accessKeyID]
	s.mu.Unlock()
	if !known || p.SessionToken != r.Header.Get("X-Amz-Security-Token") {
		return Principal{}, refuse("UnrecognizedClientException", "The security token included in the request is invalid.")
	}
	if !p.Expires.IsZero() && !time.Now().Before(p.Expires) {
		return Principal{}, refuse("ExpiredTokenException", "The security token included in the request is expired")
	}
	if auth.region != s.config.Region {
		return Principal{}, refuse("InvalidSignatureException", "Credential should be scoped to a valid region.")
	}
	if auth.service != service {
		return Principal{}, refuse("InvalidSignatureException", "Credential should be scoped to correct service: '%s'.", service)
	}
	signed, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
	if err != nil || auth.date != signed.Format("20060102") {
		return Principal{}, refuse("InvalidSignatureException", "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP")
	}
	switch skew := time.Since(signed); {
	case skew > maxClockSkew:
		return Principal{}, refuse("InvalidSignatureException", "Signature expired: %s is now earlier than the time allowed", r.Header.Get("X-Amz-Date"))
	case skew < -maxClockSkew:
		return Principal{}, refuse("InvalidSignatureException", "Signature not yet current: %s is still later than the time allowed", r.Header.Get("X-Amz-Date"))
	}
	if !s.signatureMatches(r, body, p, auth, signed) {
		return Principal{}, refuse("InvalidSignatureException", "%s", mismatch(r, auth))
	}
	return p, nil
}

// authorization is an Authorization header taken apart.
type authorization struct {
	accessKeyID, date, region, service string
	headers                            []string
}

func parseAuthorization(header string) (authorization, bool) {
	fields, ok := strings.CutPrefix(header, "AWS4-HMAC-SHA256 ")
	parts := map[string]string{}
	for field := range strings.SplitSeq(fields, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(field), "=")
		parts[name] = value
	}
	scope := strings.Split(parts["Credential"], "/")
	if !ok || len(scope) != 5 || scope[4] != "aws4_request" || parts["Signature"] == "" {
		return authorization{}, false
	}
	a := authorization{scope[0], scope[1], scope[2], scope[3], strings.Split(parts["SignedHeaders"], ";")}
	return a, slices.Contains(a.headers, "host") && slices.Contains(a.headers, "x-amz-date")
}

func (s *Server) signatureMatches(r *http.Request, body []byte, p Principal, auth authorization, signed time.Time) bool {
	again := &http.Request{Method: r.Method, URL: r.URL, Host: r.Host, Header: http.Header{}}
	for name := range r.Header {
		switch lower := strings.ToLower(name); {
		case slices.Contains(auth.headers, lower):
			again.Header[name] = slices.Clone(r.Header[name])
		case strings.HasPrefix(lower, "x-amz-"):
			return false // AWS demands that all of these are signed
		}
	}
	if slices.Contains(auth.headers, "content-length") {
		again.ContentLength = r.ContentLength
	}
	sum := sha256.Sum256(body)
	creds := aws.Credentials{AccessKeyID: p.AccessKeyID, SecretAccessKey: p.SecretAccessKey, SessionToken: p.SessionToken}
	if err := v4.NewSigner().SignHTTP(r.Context(), creds, again, hex.EncodeToString(sum[:]), auth.service, auth.region, signed); err != nil {
		return false
	}
	return subtle.ConstantTimeCompare([]byte(again.Header.Get("Authorization")), []byte(r.Header.Get("Authorization"))) == 1
}

// mismatch words a wrong signature as AWS does: with the canonical request, and
// so with the caller's session token. A client that logs it whole leaks it.
func mismatch(r *http.Request, auth authorization) string {
	var b strings.Builder
	b.WriteString("The request signature we calculated does not match the signature you provided. " +
		"Check your AWS Secret Access Key and signing method. Consult the service documentation for details.\n\n" +
		"The Canonical String for this request should have been\n'POST\n/\n\n")
	for _, name := range auth.headers {
		b.WriteString(name + ":" + r.Header.Get(name) + "\n")
	}
	b.WriteString("'\n")
	return b.String()
}

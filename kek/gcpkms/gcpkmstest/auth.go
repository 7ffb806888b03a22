package gcpkmstest

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
)

// Principal is whoever may call.
type Principal struct {
	// Name is a service account's email, or "principal://iam.googleapis.com/…" of
	// a workload identity.
	Name string

	// Allow lists permissions: "cloudkms.cryptoKeys.get", "cloudkms.*", "*".
	Allow []string

	// Revoked makes KMS refuse all tokens of the principal.
	Revoked bool
}

type principal struct {
	Principal
	keys []crypto.PublicKey // of its key files
}

// issued is what the server knows of a token.
type issued struct {
	to   string
	ends time.Time
}

// SetPrincipal adds a principal, or changes the one of that name.
func (s *Server) SetPrincipal(p Principal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.principals[p.Name] == nil {
		s.principals[p.Name] = &principal{}
	}
	s.principals[p.Name].Principal = p
}

// SetTokenLifetime sets how long tokens live that are given out from now on.
func (s *Server) SetTokenLifetime(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lifetime = d
}

// RevokeTokens ends all tokens that were given out so far, key files aside.
func (s *Server) RevokeTokens() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.tokens)
}

// Token gives out an access token and tells how long it lives.
func (s *Server) Token(name string) (token string, lifetime time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	token = "ya29." + rand.Text()
	s.tokens[token] = issued{name, time.Now().Add(s.lifetime)}
	return token, s.lifetime
}

// KeyFile makes a key of a service account and returns it as the JSON file that
// Google gives out. Clients sign tokens with it themselves (a "self-signed JWT");
// the file's token_uri is not served.
func (s *Server) KeyFile(email string) []byte {
	secret, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(secret)
	if err != nil {
		panic(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	p, ok := s.principals[email]
	if !ok {
		panic("gcpkmstest: no principal " + email)
	}
	p.keys = append(p.keys, &secret.PublicKey)
	file, err := json.Marshal(map[string]string{
		"type": "service_account", "project_id": "p", "private_key_id": fmt.Sprint(len(p.keys)),
		"private_key":  string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
		"client_email": email, "client_id": "1", "token_uri": "https://oauth2.googleapis.com/token",
	})
	if err != nil {
		panic(err)
	}
	return file
}

// authenticate returns the name of the caller.
func (s *Server) authenticate(authorization []string) (string, error) {
	unauthenticated := func(reason, message string) (string, error) {
		return "", refuse(codes.Unauthenticated, message, &errdetails.ErrorInfo{Reason: reason, Domain: "googleapis.com"})
	}
	if len(authorization) != 1 {
		return unauthenticated("CREDENTIALS_MISSING", "Request is missing required authentication credential. Expected OAuth 2 access token, login cookie or other valid authentication credential.")
	}
	token, isBearer := strings.CutPrefix(authorization[0], "Bearer ")
	s.mu.Lock()
	defer s.mu.Unlock()
	of, known := s.tokens[token]
	if !known && isBearer {
		of, known = s.selfSigned(token)
	}
	p := s.principals[of.to]
	switch {
	case !known || p == nil:
		return unauthenticated("ACCESS_TOKEN_TYPE_UNSUPPORTED", "Request had invalid authentication credentials. Expected OAuth 2 access token, login cookie or other valid authentication credential.")
	case p.Revoked || time.Now().After(of.ends):
		return unauthenticated("ACCESS_TOKEN_EXPIRED", "Request had invalid authentication credentials. Expected OAuth 2 access token, login cookie or other valid authentication credential.")
	}
	return of.to, nil
}

// selfSigned reads a token that a service account signed with its key:
// https://google.aip.dev/auth/4111.
func (s *Server) selfSigned(token string) (issued, bool) {
	jwt, ok := parseJWT(token)
	if !ok || jwt.Issuer != jwt.Subject || !slices.Contains(strings.Fields(jwt.Scope), cloudPlatform) {
		return issued{}, false
	}
	if p := s.principals[jwt.Issuer]; p == nil || !slices.ContainsFunc(p.keys, jwt.signedBy) {
		return issued{}, false
	}
	return issued{jwt.Issuer, time.Unix(jwt.Expires, 0)}, true
}

const cloudPlatform = "https://www.googleapis.com/auth/cloud-platform"

// permit refuses a caller who lacks a permission. Google does not tell such a
// caller whether the resource exists.
func (s *Server) permit(ctx context.Context, permission, resource string) error {
	who, _ := ctx.Value(callerKey{}).(string)
	if s.may(who, permission) {
		return nil
	}
	return refuse(codes.PermissionDenied,
		fmt.Sprintf("Permission '%s' denied on resource '%s' (or it may not exist).", permission, resource),
		&errdetails.ErrorInfo{Reason: "IAM_PERMISSION_DENIED", Domain: "cloudkms.googleapis.com", Metadata: map[string]string{"permission": permission, "resource": resource}})
}

func (s *Server) may(who, permission string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.principals[who]
	service, _, _ := strings.Cut(permission, ".")
	return p != nil && slices.ContainsFunc(p.Allow, func(a string) bool {
		return a == permission || a == "*" || a == service+".*"
	})
}

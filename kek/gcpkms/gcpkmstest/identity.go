package gcpkmstest

import (
	"crypto"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Metadata is the metadata server of a machine with a service account:
// https://cloud.google.com/compute/docs/metadata/predefined-metadata-keys.
// GCE_METADATA_HOST=HOST:PORT leads SDKs to it. With an empty email the machine
// has no service account.
func (s *Server) Metadata(email string) http.Handler {
	mux := http.NewServeMux()
	const account = "GET /computeMetadata/v1/instance/service-accounts/default/"
	mux.HandleFunc(account+"token", func(w http.ResponseWriter, r *http.Request) {
		call := s.record(&Call{Method: "MetadataToken", Principal: email})
		if email == "" {
			s.setCode(call, status.Error(codes.NotFound, ""))
			http.Error(w, "<html>Not Found</html>", http.StatusNotFound)
			return
		}
		token, lifetime := s.Token(email)
		reply(w, http.StatusOK, map[string]any{"access_token": token, "expires_in": int(lifetime.Seconds()), "token_type": "Bearer"})
	})
	mux.HandleFunc(account+"email", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/text")
		_, _ = w.Write([]byte(email))
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Metadata-Flavor", "Google")
		// What a browser or a proxy was tricked into asking is not answered.
		if r.Header.Get("Metadata-Flavor") != "Google" || r.Header.Get("X-Forwarded-For") != "" {
			http.Error(w, "<html>Forbidden</html>", http.StatusForbidden)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// Federation is a workload identity pool with one OIDC provider. A token of the
// issuer becomes one of principal://iam.googleapis.com/POOL/subject/SUBJECT.
type Federation struct {
	Pool     string // projects/NUMBER/locations/global/workloadIdentityPools/POOL
	Provider string // its ID within the pool
	Issuer   string // the "iss" of tokens that are accepted
	Audience string // their "aud"; that of STS itself if empty
	Key      crypto.PublicKey
}

// Name is the audience of requests to STS.
func (f Federation) Name() string {
	return "//iam.googleapis.com/" + f.Pool + "/providers/" + f.Provider
}

// Principal is the name of a principal with the subject.
func (f Federation) Principal(subject string) string {
	return "principal://iam.googleapis.com/" + f.Pool + "/subject/" + subject
}

// STS exchanges tokens at POST /v1/token (RFC 8693), and gives out tokens of
// service accounts, as the IAM Credentials API does, at POST
// /v1/projects/-/serviceAccounts/EMAIL:generateAccessToken to principals with
// the permission iam.serviceAccounts.getAccessToken.
func (s *Server) STS(f Federation) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/token", func(w http.ResponseWriter, r *http.Request) {
		call := s.record(&Call{Method: "ExchangeToken"})
		no := func(code, text string) {
			s.setCode(call, status.Error(codes.InvalidArgument, ""))
			reply(w, http.StatusBadRequest, map[string]string{"error": code, "error_description": text})
		}
		for name, want := range map[string]string{
			"grant_type":           "urn:ietf:params:oauth:grant-type:token-exchange",
			"requested_token_type": "urn:ietf:params:oauth:token-type:access_token",
			"subject_token_type":   "urn:ietf:params:oauth:token-type:jwt",
			"scope":                cloudPlatform,
		} {
			if got := r.FormValue(name); got != want {
				no("invalid_request", "Invalid value for \""+name+"\".")
				return
			}
		}
		jwt, ok := parseJWT(r.FormValue("subject_token"))
		now := time.Now().Unix()
		switch {
		case r.FormValue("audience") != f.Name():
			no("invalid_target", "The target service indicated by the \"audience\" parameters is invalid. This might either be because the pool or provider is disabled or deleted or because it doesn't exist.")
		case !ok:
			no("invalid_request", "Unable to parse the ID Token.")
		case jwt.Issuer != f.Issuer:
			no("invalid_grant", "The issuer in ID Token does not match the expected ones.")
		case !slices.Contains(jwt.Audience, f.audience()):
			no("invalid_grant", "The audience in ID Token does not match the expected audience.")
		case !jwt.signedBy(f.Key):
			no("invalid_grant", "Error verifying the signature of the ID Token.")
		case now >= jwt.Expires:
			no("invalid_grant", "ID Token is stale to sign-in.")
		case now < jwt.NotBefore:
			no("invalid_grant", "ID Token is not yet valid.")
		default:
			token, lifetime := s.Token(f.Principal(jwt.Subject))
			reply(w, http.StatusOK, map[string]any{
				"access_token": token, "issued_token_type": "urn:ietf:params:oauth:token-type:access_token",
				"token_type": "Bearer", "expires_in": int(lifetime.Seconds()),
			})
		}
	})
	mux.HandleFunc("POST /v1/projects/-/serviceAccounts/{account}", func(w http.ResponseWriter, r *http.Request) {
		who, err := s.authenticate(r.Header.Values("Authorization"))
		call := s.record(&Call{Method: "GenerateAccessToken", Principal: who, Name: r.PathValue("account")})
		email, ok := strings.CutSuffix(r.PathValue("account"), ":generateAccessToken")
		switch {
		case err != nil:
			s.setCode(call, err)
			reply(w, http.StatusUnauthorized, apiError(http.StatusUnauthorized, "UNAUTHENTICATED", status.Convert(err).Message()))
		case !ok || !s.may(who, "iam.serviceAccounts.getAccessToken"):
			s.setCode(call, status.Error(codes.PermissionDenied, ""))
			reply(w, http.StatusForbidden, apiError(http.StatusForbidden, "PERMISSION_DENIED", "Permission 'iam.serviceAccounts.getAccessToken' denied on resource (or it may not exist)."))
		default:
			token, lifetime := s.Token(email)
			reply(w, http.StatusOK, map[string]string{"accessToken": token, "expireTime": time.Now().Add(lifetime).UTC().Format(time.RFC3339)})
		}
	})
	return mux
}

func (f Federation) audience() string {
	if f.Audience == "" {
		return "https:" + f.Name()
	}
	return f.Audience
}

func apiError(code int, status, message string) any {
	return map[string]any{"error": map[string]any{"code": code, "status": status, "message": message}}
}

func reply(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // an error here is a client that has gone
}

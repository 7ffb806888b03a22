package azurekvtest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"math/big"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Principal is someone who may call.
type Principal struct {
	ClientID string // an application's, or a managed identity's; made up if empty
	ObjectID string // made up if empty

	// The ways in which it may prove itself; several are fine.
	Secret      string
	Certificate *x509.Certificate // registered with the application; its key is RSA
	Federated   *Issuer           // whose tokens it trades
	ResourceID  string            // a managed identity's: the machine may have its tokens
	System      bool              // a managed identity that is the machine's own

	// Allow lists permissions of an access policy: "keys/get", "keys/wrapKey",
	// "keys/*". Nothing else is permitted.
	Allow []string

	// RBAC words refusals as a vault does that is under RBAC.
	RBAC bool
}

// Issuer is who makes the tokens that a federated principal trades, such as a
// cluster's ServiceAccount issuer.
type Issuer struct {
	URL     string
	Subject string           // "system:serviceaccount:NAMESPACE:NAME"
	Key     crypto.PublicKey // *rsa.PublicKey or *ecdsa.PublicKey on P-256
}

// exchangeAudience is the audience of tokens that Entra ID trades.
const exchangeAudience = "api://AzureADTokenExchange"

// AddPrincipal makes p known, in place of one with the same ClientID, and returns it.
func (s *Server) AddPrincipal(p Principal) Principal {
	if p.ClientID == "" {
		p.ClientID = newUUID()
	}
	if p.ObjectID == "" {
		p.ObjectID = newUUID()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.principals[p.ClientID] = &p
	if p.System {
		s.system = p.ClientID
	}
	return p
}

func (s *Server) principal(clientID string) (Principal, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.principals[clientID]; p != nil {
		return *p, true
	}
	return Principal{}, false
}

// claims are what the tokens say that come here, ours and others'.
type claims struct {
	Issuer    string `json:"iss"`
	Subject   string `json:"sub,omitempty"`
	Audience  any    `json:"aud"` // a string or, in a ServiceAccount's, a list
	Expires   int64  `json:"exp"`
	NotBefore int64  `json:"nbf"`
	AppID     string `json:"appid,omitempty"`
	ObjectID  string `json:"oid,omitempty"`
	Tenant    string `json:"tid,omitempty"`
	Resource  string `json:"xms_mirid,omitempty"`
}

func (c claims) isFor(audience string) bool {
	list, _ := c.Audience.([]any)
	return c.Audience == audience || slices.Contains(list, any(audience))
}

func (s *Server) issuer() string { return "https://sts.windows.net/" + s.config.Tenant + "/" }

// issue makes an access token.
func (s *Server) issue(p Principal, resource string) string {
	now := time.Now()
	c := claims{
		Issuer: s.issuer(), Subject: p.ObjectID, Audience: resource,
		NotBefore: now.Unix(), Expires: now.Add(s.config.TokenLife).Unix(),
		AppID: p.ClientID, ObjectID: p.ObjectID, Tenant: s.config.Tenant, Resource: p.ResourceID,
	}
	signed := encode(map[string]string{"alg": "ES256", "typ": "JWT"}) + "." + encode(c)
	sum := sha256.Sum256([]byte(signed))
	r, t, err := ecdsa.Sign(rand.Reader, s.signer, sum[:])
	if err != nil {
		panic(err) // crypto/rand does not fail
	}
	signature := make([]byte, 64)
	r.FillBytes(signature[:32])
	t.FillBytes(signature[32:])
	return signed + "." + base64.RawURLEncoding.EncodeToString(signature)
}

func encode(v any) string {
	return base64.RawURLEncoding.EncodeToString(must(json.Marshal(v)))
}

// parse verifies a token's signature, and returns what it says. The kind of the
// key decides on the algorithm, never the token alone (RFC 7518, sections 3.3 to 3.5).
func parse(token string, key crypto.PublicKey) (c claims, header map[string]any, ok bool) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 || !decode(parts[0], &header) || !decode(parts[1], &c) {
		return c, nil, false
	}
	signature, err := base64.RawURLEncoding.DecodeString(parts[2])
	sum := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
	switch key := key.(type) {
	case *rsa.PublicKey:
		switch header["alg"] {
		case "RS256":
			ok = rsa.VerifyPKCS1v15(key, crypto.SHA256, sum[:], signature) == nil
		case "PS256":
			ok = rsa.VerifyPSS(key, crypto.SHA256, sum[:], signature, nil) == nil
		}
	case *ecdsa.PublicKey:
		ok = header["alg"] == "ES256" && len(signature) == 64 &&
			ecdsa.Verify(key, sum[:], new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:]))
	}
	return c, header, ok && err == nil
}

func decode(part string, into any) bool {
	b, err := base64.RawURLEncoding.DecodeString(part)
	return err == nil && json.Unmarshal(b, into) == nil
}

// authenticate returns the client ID that a vault's request has a token of.
func (s *Server) authenticate(r *http.Request, action string) (string, *refusal) {
	switch action {
	case ActionDiscovery, ActionToken, ActionMetadata:
		return "", nil
	}
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		return "", refuse(http.StatusUnauthorized, "Unauthorized", "AKV10000: Request is missing a Bearer or PoP token.")
	}
	c, _, ok := parse(token, &s.signer.PublicKey)
	now := time.Now().Unix()
	_, known := s.principal(c.AppID)
	switch {
	case !ok || c.Issuer != s.issuer():
		return "", refuse(http.StatusUnauthorized, "Unauthorized", "[BearerReadAccessTokenFailed] Error validating token: 'S2S12005'.")
	case !c.isFor(s.resource()):
		return "", refuse(http.StatusUnauthorized, "Unauthorized", "AKV10022: Invalid audience. Expected %s, found: %v.", s.resource(), c.Audience)
	case now < c.NotBefore || now >= c.Expires:
		return "", refuse(http.StatusUnauthorized, "Unauthorized", "[TokenExpired] Error validating token: 'S2S12086'.")
	case !known:
		return "", refuse(http.StatusUnauthorized, "Unauthorized", "AKV10046: Unable to resolve the key used for signature validation.")
	}
	return c.AppID, nil
}

// permissions are the names of what actions need: in an access policy, and the
// end of an RBAC action.
var permissions = map[string][2]string{
	"GetKey":               {"get", "read"},
	"GetDeletedKey":        {"get", "read"},
	"WrapKey":              {"wrapKey", "wrap/action"},
	"UnwrapKey":            {"unwrapKey", "unwrap/action"},
	"GetKeyRotationPolicy": {"getrotationpolicy", "rotationpolicy/read"},
}

func (s *Server) permit(c *Call) *refusal {
	p, _ := s.principal(c.Principal)
	needed := permissions[c.Action]
	if slices.Contains(p.Allow, "keys/"+needed[0]) || slices.Contains(p.Allow, "keys/*") {
		return nil
	}
	who := "appid=" + p.ClientID + ";oid=" + p.ObjectID + ";iss=" + s.issuer()
	name, _, _ := strings.Cut(s.config.Host, ".")
	if !p.RBAC && !s.hsm() {
		return refuse(http.StatusForbidden, "Forbidden", "The user, group or application '%s' does not have keys %s permission on key vault '%s;location=westeurope'. "+
			"For help resolving this issue, please see https://go.microsoft.com/fwlink/?linkid=2125287", who, needed[0], name).within("ForbiddenByPolicy")
	}
	service := "vaults"
	if s.hsm() {
		service = "managedHsm"
	}
	return refuse(http.StatusForbidden, "Forbidden", "Caller is not authorized to perform action on resource.\r\n"+
		"If role assignments, deny assignments or role definitions were changed recently, please observe propagation time.\r\n"+
		"Caller: %s\r\nAction: 'Microsoft.KeyVault/%s/keys/%s'\r\nVault: %s;location=westeurope", who, service, needed[1], name).within("ForbiddenByRbac")
}

// discovery is what SDKs read before they ask for a token.
func (s *Server) discovery(r request) (any, *refusal) {
	base := "https://" + r.Host + "/" + s.config.Tenant
	return map[string]any{
		"token_endpoint":         base + "/oauth2/v2.0/token",
		"authorization_endpoint": base + "/oauth2/v2.0/authorize",
		"issuer":                 base + "/v2.0",
	}, nil
}

// token is the client credentials grant: a secret, or an assertion that was
// signed with a certificate or by a federated issuer.
func (s *Server) token(r request) (any, *refusal) {
	form, err := url.ParseQuery(string(r.body))
	if err != nil || form.Get("grant_type") != "client_credentials" {
		return nil, refuse(http.StatusBadRequest, "unsupported_grant_type", "AADSTS70003: The app requested an unsupported grant type '%s'.", form.Get("grant_type"))
	}
	p, known := s.principal(form.Get("client_id"))
	if !known {
		return nil, refuse(http.StatusBadRequest, "unauthorized_client", "AADSTS700016: Application with identifier '%s' was not found in the directory.", form.Get("client_id"))
	}
	assertion := form.Get("client_assertion")
	switch {
	case assertion == "":
		if p.Secret == "" || subtle.ConstantTimeCompare([]byte(form.Get("client_secret")), []byte(p.Secret)) != 1 {
			return nil, refuse(http.StatusUnauthorized, "invalid_client", "AADSTS7000215: Invalid client secret provided.\r\nTrace ID: %s", newUUID())
		}
	case form.Get("client_assertion_type") != "urn:ietf:params:oauth:client-assertion-type:jwt-bearer":
		return nil, refuse(http.StatusBadRequest, "invalid_request", "AADSTS900144: The request body must contain the following parameter: 'client_assertion_type'.")
	default:
		if refused := s.trade(p, assertion, "https://"+r.Host+"/"+s.config.Tenant); refused != nil {
			return nil, refused
		}
	}
	i := slices.IndexFunc(strings.Fields(form.Get("scope")), func(s string) bool { return strings.HasSuffix(s, "/.default") })
	if i < 0 {
		return nil, refuse(http.StatusBadRequest, "invalid_scope", "AADSTS1002012: The provided value for scope %s is not valid.", form.Get("scope"))
	}
	resource := strings.TrimSuffix(strings.Fields(form.Get("scope"))[i], "/.default")
	s.setPrincipal(r.call, p)
	return map[string]any{
		"token_type": "Bearer", "access_token": s.issue(p, resource),
		"expires_in": int(s.config.TokenLife / time.Second), "ext_expires_in": int(s.config.TokenLife / time.Second),
	}, nil
}

// trade verifies an assertion: a certificate's, or a federated issuer's.
func (s *Server) trade(p Principal, assertion, authority string) *refusal {
	now := time.Now().Unix()
	var unverified map[string]any
	_ = decode(strings.Split(assertion, ".")[0], &unverified)
	if p.Certificate != nil && (unverified["x5t"] != nil || unverified["x5t#S256"] != nil) {
		c, header, ok := parse(assertion, p.Certificate.PublicKey)
		sum1, sum256 := sha1.Sum(p.Certificate.Raw), sha256.Sum256(p.Certificate.Raw)
		switch {
		case header["x5t"] != base64.StdEncoding.EncodeToString(sum1[:]) && header["x5t"] != base64.RawURLEncoding.EncodeToString(sum1[:]) &&
			header["x5t#S256"] != base64.StdEncoding.EncodeToString(sum256[:]) && header["x5t#S256"] != base64.RawURLEncoding.EncodeToString(sum256[:]), !ok:
			return refuse(http.StatusUnauthorized, "invalid_client", "AADSTS700027: The certificate with identifier used to sign the client assertion is not registered on application.\r\nTrace ID: %s", newUUID())
		case c.Issuer != p.ClientID || c.Subject != p.ClientID || !c.isFor(authority+"/oauth2/v2.0/token"):
			return refuse(http.StatusUnauthorized, "invalid_client", "AADSTS700023: Client assertion audience claim does not match Realm issuer.")
		case now >= c.Expires || now < c.NotBefore:
			return refuse(http.StatusUnauthorized, "invalid_client", "AADSTS700024: Client assertion is not within its valid time range.")
		}
		return nil
	}
	if p.Federated == nil {
		return refuse(http.StatusUnauthorized, "invalid_client", "AADSTS70025: The client '%s' has no configured federated identity credentials.", p.ClientID)
	}
	c, _, ok := parse(assertion, p.Federated.Key)
	switch {
	case !ok:
		return refuse(http.StatusUnauthorized, "invalid_client", "AADSTS7000272: Unable to read or validate the JWT: signature validation failed.")
	case now >= c.Expires || now < c.NotBefore:
		return refuse(http.StatusUnauthorized, "invalid_client", "AADSTS700024: Client assertion is not within its valid time range.")
	case !c.isFor(exchangeAudience):
		return refuse(http.StatusUnauthorized, "invalid_client", "AADSTS700212: No matching federated identity record found for presented assertion audience '%v'.", c.Audience)
	case c.Issuer != p.Federated.URL:
		return refuse(http.StatusUnauthorized, "invalid_client", "AADSTS700211: No matching federated identity record found for presented assertion issuer '%s'.", c.Issuer)
	case c.Subject != p.Federated.Subject:
		return refuse(http.StatusUnauthorized, "invalid_client", "AADSTS700213: No matching federated identity record found for presented assertion subject '%s'.", c.Subject)
	}
	return nil
}

// metadata is the metadata service's token endpoint, which trusts whoever can
// reach it.
func (s *Server) metadata(r request) (any, *refusal) {
	q := r.URL.Query()
	switch {
	case !strings.EqualFold(r.Header.Get("Metadata"), "true"):
		return nil, refuse(http.StatusBadRequest, "bad_request_102", "Required metadata header not specified")
	case r.Header.Get("X-Forwarded-For") != "":
		return nil, refuse(http.StatusBadRequest, "bad_request", "X-Forwarded-For must not be sent")
	case q.Get("api-version") == "" || q.Get("resource") == "":
		return nil, refuse(http.StatusBadRequest, "invalid_request", "Required query variables 'resource' and 'api-version' are missing")
	}
	s.mu.Lock()
	id := s.system
	s.mu.Unlock()
	if q.Has("client_id") {
		id = q.Get("client_id")
	}
	p, known := s.principal(id)
	if !known || p.ResourceID == "" {
		return nil, refuse(http.StatusBadRequest, "invalid_request", "Identity not found")
	}
	s.setPrincipal(r.call, p)
	seconds := strconv.Itoa(int(s.config.TokenLife / time.Second))
	return map[string]string{
		"access_token": s.issue(p, q.Get("resource")), "client_id": p.ClientID, "token_type": "Bearer", "resource": q.Get("resource"),
		"expires_in": seconds, "ext_expires_in": seconds, "expires_on": strconv.FormatInt(time.Now().Add(s.config.TokenLife).Unix(), 10),
		"not_before": strconv.FormatInt(time.Now().Unix(), 10),
	}, nil
}

func (s *Server) setPrincipal(c *Call, p Principal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.Principal = p.ClientID
}

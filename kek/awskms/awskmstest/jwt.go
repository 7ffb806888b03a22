package awskmstest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"math/big"
	"slices"
	"strings"
	"time"
)

// claims are what a web identity token says.
type claims struct {
	Issuer    string   `json:"iss"`
	Subject   string   `json:"sub"`
	Audience  audience `json:"aud"`
	Expires   int64    `json:"exp"`
	NotBefore int64    `json:"nbf"`
}

// audience is one string or a list of them (RFC 7519, section 4.1.3).
type audience []string

func (a *audience) UnmarshalJSON(b []byte) error {
	var one string
	if json.Unmarshal(b, &one) == nil {
		*a = audience{one}
		return nil
	}
	return json.Unmarshal(b, (*[]string)(a))
}

// verify refuses a token that is not the issuer's, has ended, or is not for the role.
func (i *Issuer) verify(token string) *apiError {
	parts := strings.Split(token, ".")
	var header struct {
		Algorithm string `json:"alg"`
	}
	var c claims
	if len(parts) != 3 || !decodePart(parts[0], &header) || !decodePart(parts[1], &c) {
		return refuse("InvalidIdentityToken", "The ID Token provided is not a valid JWT. (You may see this error if you sent an Access Token)")
	}
	signature, err := base64.RawURLEncoding.DecodeString(parts[2])
	if err != nil || !verifySignature(i.Key, header.Algorithm, parts[0]+"."+parts[1], signature) {
		return refuse("InvalidIdentityToken", "Couldn't retrieve verification key from your identity provider, please reference AssumeRoleWithWebIdentity documentation for requirements")
	}
	now := time.Now().Unix()
	switch {
	case c.Issuer != i.URL:
		return refuse("InvalidIdentityToken", "No OpenIDConnect provider found in your account for %s", c.Issuer)
	case !slices.Contains(c.Audience, i.Audience):
		return refuse("InvalidIdentityToken", "Incorrect token audience")
	case now >= c.Expires:
		return refuse("ExpiredTokenException", "Token expired: current date/time %d must be before the expiration date/time %d", now, c.Expires)
	case now < c.NotBefore:
		return refuse("InvalidIdentityToken", "Token is not valid before %d", c.NotBefore)
	case i.Subject != "" && c.Subject != i.Subject:
		return refuse("AccessDenied", "Not authorized to perform sts:AssumeRoleWithWebIdentity")
	}
	return nil
}

func decodePart(part string, into any) bool {
	b, err := base64.RawURLEncoding.DecodeString(part)
	return err == nil && json.Unmarshal(b, into) == nil
}

// verifySignature checks RS256 and ES256 (RFC 7518, sections 3.3 and 3.4): the
// kind of the key decides, never the token alone.
func verifySignature(key crypto.PublicKey, algorithm, signed string, signature []byte) bool {
	sum := sha256.Sum256([]byte(signed))
	switch key := key.(type) {
	case *rsa.PublicKey:
		return algorithm == "RS256" && rsa.VerifyPKCS1v15(key, crypto.SHA256, sum[:], signature) == nil
	case *ecdsa.PublicKey:
		return algorithm == "ES256" && len(signature) == 64 &&
			ecdsa.Verify(key, sum[:], new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:]))
	}
	return false
}

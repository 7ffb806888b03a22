package gcpkmstest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"math/big"
	"strings"
)

// jwt is a JSON Web Token (RFC 7519) whose signature was not yet verified.
type jwt struct {
	Issuer    string   `json:"iss"`
	Subject   string   `json:"sub"`
	Audience  audience `json:"aud"`
	Scope     string   `json:"scope"`
	Expires   int64    `json:"exp"`
	NotBefore int64    `json:"nbf"`

	algorithm string
	signed    string
	signature []byte
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

func parseJWT(token string) (j jwt, ok bool) {
	parts := strings.Split(token, ".")
	var header struct {
		Algorithm string `json:"alg"`
	}
	if len(parts) != 3 || !decodePart(parts[0], &header) || !decodePart(parts[1], &j) {
		return j, false
	}
	signature, err := base64.RawURLEncoding.DecodeString(parts[2])
	j.algorithm, j.signed, j.signature = header.Algorithm, parts[0]+"."+parts[1], signature
	return j, err == nil
}

func decodePart(part string, into any) bool {
	b, err := base64.RawURLEncoding.DecodeString(part)
	return err == nil && json.Unmarshal(b, into) == nil
}

// signedBy checks RS256 and ES256 (RFC 7518, sections 3.3 and 3.4): the kind of
// the key decides, never the token alone.
func (j jwt) signedBy(key crypto.PublicKey) bool {
	sum := sha256.Sum256([]byte(j.signed))
	switch key := key.(type) {
	case *rsa.PublicKey:
		return j.algorithm == "RS256" && rsa.VerifyPKCS1v15(key, crypto.SHA256, sum[:], j.signature) == nil
	case *ecdsa.PublicKey:
		return j.algorithm == "ES256" && len(j.signature) == 64 &&
			ecdsa.Verify(key, sum[:], new(big.Int).SetBytes(j.signature[:32]), new(big.Int).SetBytes(j.signature[32:]))
	}
	return false
}

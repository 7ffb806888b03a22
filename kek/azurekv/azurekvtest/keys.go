package azurekvtest

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"time"
)

// Key types of [Server.CreateKeyOf].
const (
	RSA    = "RSA"
	RSAHSM = "RSA-HSM"
	OctHSM = "oct-HSM" // of 256 bits, on a Managed HSM alone
	EC     = "EC"      // can be looked at, and does nothing
)

// key is a key with its versions, the newest last.
type key struct {
	name     string
	kind     string
	bits     int
	ops      []string
	versions []*version
	pool     []*rsa.PrivateKey
	rotate   string    // the rotation policy: every so often (ISO 8601), "" is off
	purge    time.Time // when a deleted key is gone; zero: it is not deleted
	gone     bool
}

type version struct {
	name      string
	rsa       *rsa.PrivateKey
	aes       []byte
	enabled   bool
	nbf, exp  time.Time // zero: none
	created   time.Time
	protected bool
}

// CreateKey makes a key that can wrap, of the type that the server has: RSA of
// 2048 bits, or oct-HSM on a Managed HSM. It returns its first version.
func (s *Server) CreateKey(name string) (version string) {
	if s.hsm() {
		return s.CreateKeyOf(name, OctHSM, 256)
	}
	return s.CreateKeyOf(name, RSA, 2048)
}

// CreateKeyOf makes a key of a type and size, with operations other than
// wrapKey and unwrapKey if any are given.
func (s *Server) CreateKeyOf(name, kind string, bits int, ops ...string) (version string) {
	if len(ops) == 0 {
		ops = []string{"wrapKey", "unwrapKey"}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	k := &key{name: name, kind: kind, bits: bits, ops: ops}
	s.keys[name] = k
	return s.addVersion(k)
}

// Rotate makes a new version of the key, and returns it.
func (s *Server) Rotate(name string) (version string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.addVersion(s.mustKey(name))
}

func (s *Server) addVersion(k *key) string {
	v := &version{name: newVersion(), enabled: true, created: time.Now().Truncate(time.Second), protected: true}
	switch k.kind {
	case RSA, RSAHSM:
		v.rsa = k.rsaKey()
	case OctHSM:
		v.aes = randomBytes(k.bits / 8)
	}
	k.versions = append(k.versions, v)
	return v.name
}

// poolSize is how many RSA keys a key has before its versions take the same ones
// again: they are slow to make. Versions that follow on each other differ.
const poolSize = 3

func (k *key) rsaKey() *rsa.PrivateKey {
	if len(k.pool) < poolSize {
		k.pool = append(k.pool, must(rsa.GenerateKey(rand.Reader, k.bits)))
	}
	return k.pool[len(k.versions)%len(k.pool)]
}

// SetEnabled enables or disables a version of the key; "" means all of them.
func (s *Server) SetEnabled(name, which string, enabled bool) {
	s.each(name, which, func(v *version) { v.enabled = enabled })
}

// SetValidity sets from when until when a version is valid; zero times are no
// limit. "" means all versions.
func (s *Server) SetValidity(name, which string, nbf, exp time.Time) {
	s.each(name, which, func(v *version) { v.nbf, v.exp = nbf, exp })
}

// SetPurgeProtection says what the key's recovery level tells; it is on at first.
func (s *Server) SetPurgeProtection(name string, on bool) {
	s.each(name, "", func(v *version) { v.protected = on })
}

// SetRotation sets the rotation policy: a new version every so often, in ISO
// 8601, "" for never. Nothing rotates by itself.
func (s *Server) SetRotation(name, every string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mustKey(name).rotate = every
}

// Delete deletes a key so that it can be recovered until purge.
func (s *Server) Delete(name string, purge time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mustKey(name).purge = purge
}

// Remove makes the key one that the vault never had.
func (s *Server) Remove(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mustKey(name).gone = true
}

// Recover undoes Delete and Remove.
func (s *Server) Recover(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.mustKey(name)
	k.purge, k.gone = time.Time{}, false
}

func (s *Server) each(name, which string, do func(*version)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, v := range s.mustKey(name).versions {
		if which == "" || which == v.name {
			do(v)
		}
	}
}

// mustKey is called with mu held.
func (s *Server) mustKey(name string) *key {
	k := s.keys[name]
	if k == nil {
		panic(fmt.Sprintf("azurekvtest: there is no key %q", name))
	}
	return k
}

// vault makes an action of a function that runs under the server's lock.
func (s *Server) vault(do func(request) (any, *refusal)) func(request) (any, *refusal) {
	return func(r request) (any, *refusal) {
		if r.URL.Query().Get("api-version") == "" {
			return nil, refuse(http.StatusBadRequest, "BadParameter", "api-version must be specified")
		}
		if refused := s.permit(r.call); refused != nil {
			return nil, refused
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		return do(r)
	}
}

// find returns the version that a call names, the newest if it names none.
func (s *Server) find(c *Call) (*key, *version, *refusal) {
	k := s.keys[c.Key]
	missing := refuse(http.StatusNotFound, "KeyNotFound", "A key with (name/id) %s was not found in this key vault. "+
		"If you recently deleted this key you may be able to recover it using the correct recovery command.", c.Key)
	if k == nil || k.gone || !k.purge.IsZero() {
		return nil, nil, missing
	}
	if c.Version == "" {
		return k, k.versions[len(k.versions)-1], nil
	}
	i := slices.IndexFunc(k.versions, func(v *version) bool { return v.name == c.Version })
	if i < 0 {
		return nil, nil, missing
	}
	return k, k.versions[i], nil
}

func disabled(operation string) *refusal {
	return refuse(http.StatusForbidden, "Forbidden", "Operation %s is not allowed on a disabled key.", operation).within("KeyDisabled")
}

type bundle struct {
	Key        map[string]any `json:"key"`
	Attributes map[string]any `json:"attributes"`
}

func (s *Server) getKey(r request) (any, *refusal) {
	k, v, refused := s.find(r.call)
	if refused != nil {
		return nil, refused
	}
	if !v.enabled && !s.config.ShowsDisabled {
		return nil, disabled("get")
	}
	return s.bundle(k, v), nil
}

func (s *Server) kid(k *key, v *version) string {
	return "https://" + s.config.Host + "/keys/" + k.name + "/" + v.name
}

func (s *Server) bundle(k *key, v *version) bundle {
	jwk := map[string]any{"kid": s.kid(k, v), "kty": k.kind, "key_ops": k.ops}
	if v.rsa != nil {
		jwk["n"] = base64.RawURLEncoding.EncodeToString(v.rsa.N.Bytes())
		jwk["e"] = base64.RawURLEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, uint32(v.rsa.E))[1:])
	}
	attributes := map[string]any{
		"enabled": v.enabled, "created": v.created.Unix(), "updated": v.created.Unix(),
		"recoveryLevel": "Recoverable", "recoverableDays": 90,
	}
	if !v.protected {
		attributes["recoveryLevel"] = "Recoverable+Purgeable"
	}
	for name, at := range map[string]time.Time{"nbf": v.nbf, "exp": v.exp} {
		if !at.IsZero() {
			attributes[name] = at.Unix()
		}
	}
	return bundle{jwk, attributes}
}

func (s *Server) getDeletedKey(r request) (any, *refusal) {
	k := s.keys[r.call.Key]
	if k == nil || k.gone || k.purge.IsZero() {
		return nil, refuse(http.StatusNotFound, "KeyNotFound", "Deleted Key not found: %s", r.call.Key)
	}
	return struct {
		bundle
		RecoveryID string `json:"recoveryId"`
		Deleted    int64  `json:"deletedDate"`
		Purge      int64  `json:"scheduledPurgeDate"`
	}{s.bundle(k, k.versions[len(k.versions)-1]), "https://" + s.config.Host + "/deletedkeys/" + k.name, time.Now().Unix(), k.purge.Unix()}, nil
}

func (s *Server) getKeyRotationPolicy(r request) (any, *refusal) {
	k, _, refused := s.find(r.call)
	if refused != nil {
		return nil, refused
	}
	type object = map[string]any
	actions := []object{{"trigger": object{"timeBeforeExpiry": "P30D"}, "action": object{"type": "Notify"}}}
	if k.rotate != "" {
		actions = append(actions, object{"trigger": object{"timeAfterCreate": k.rotate}, "action": object{"type": "Rotate"}})
	}
	return object{"id": "https://" + s.config.Host + "/keys/" + k.name + "/rotationpolicy", "lifetimeActions": actions}, nil
}

// operate is what WrapKey and UnwrapKey have in common.
func (s *Server) operate(r request, operation string, do func(*version, []byte) []byte) (any, *refusal) {
	k, v, refused := s.find(r.call)
	if refused != nil {
		return nil, refused
	}
	var in struct{ Alg, Value string }
	if err := json.Unmarshal(r.body, &in); err != nil {
		return nil, refuse(http.StatusBadRequest, "BadParameter", "Invalid request body")
	}
	value, err := base64.RawURLEncoding.DecodeString(in.Value)
	now := time.Now()
	switch {
	case !v.enabled:
		return nil, disabled(operation)
	// Unwrapping is allowed at any time, to test a key and to recover data.
	case operation == "wrapKey" && !v.nbf.IsZero() && now.Before(v.nbf):
		return nil, refuse(http.StatusForbidden, "Forbidden", "Operation %s is not allowed on a key that is not yet valid.", operation).within("KeyNotYetValid")
	case operation == "wrapKey" && !v.exp.IsZero() && !now.Before(v.exp):
		return nil, refuse(http.StatusForbidden, "Forbidden", "Operation %s is not allowed on an expired key.", operation).within("KeyExpired")
	case !slices.Contains(k.ops, operation):
		return nil, refuse(http.StatusForbidden, "Forbidden", "Operation %s is not permitted on this key.", operation).within("KeyOperationForbidden")
	case err != nil || len(value) == 0:
		return nil, refuse(http.StatusBadRequest, "BadParameter", "Property value has invalid value")
	case v.rsa != nil && in.Alg != "RSA-OAEP-256" || v.aes != nil && in.Alg != "A256KW" || v.rsa == nil && v.aes == nil:
		return nil, refuse(http.StatusBadRequest, "BadParameter", "Key and signing algorithm %s are incompatible. Key type %s", in.Alg, k.kind)
	}
	out := do(v, value)
	if out == nil {
		return nil, refuse(http.StatusBadRequest, "BadParameter", "The parameter is incorrect.")
	}
	return map[string]string{"kid": s.kid(k, v), "value": base64.RawURLEncoding.EncodeToString(out)}, nil
}

func (s *Server) wrapKey(r request) (any, *refusal) {
	return s.operate(r, "wrapKey", func(v *version, value []byte) []byte {
		if v.aes != nil {
			return wrapAES(v.aes, value)
		}
		out, _ := rsa.EncryptOAEP(sha256.New(), rand.Reader, &v.rsa.PublicKey, value, nil)
		return out
	})
}

func (s *Server) unwrapKey(r request) (any, *refusal) {
	return s.operate(r, "unwrapKey", func(v *version, value []byte) []byte {
		if v.aes != nil {
			return unwrapAES(v.aes, value)
		}
		out, _ := rsa.DecryptOAEP(sha256.New(), nil, v.rsa, value, nil)
		return out
	})
}

func must[T any](got T, err error) T {
	if err != nil {
		panic(err)
	}
	return got
}

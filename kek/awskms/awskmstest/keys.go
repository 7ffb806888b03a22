package awskmstest

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
)

// The states of a key, as DescribeKey names them.
const (
	Enabled         = "Enabled"
	Disabled        = "Disabled"
	PendingDeletion = "PendingDeletion"
	PendingImport   = "PendingImport"
	Unavailable     = "Unavailable"
)

// key is a KMS key. Its materials are in the order of their making.
type key struct {
	id, arn     string
	spec, usage string
	description string
	state       string
	created     time.Time
	deletion    time.Time // while PendingDeletion
	period      int       // of automatic rotation in days, 0 if off
	materials   []material
	lag         Lag
	lagged      int // index of the material that lagging actions still see
}

type material struct {
	id   [32]byte
	aead cipher.AEAD
	made time.Time
}

func (m material) name() string { return hex.EncodeToString(m.id[:]) }

const symmetric, encryptDecrypt = "SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT"

// CreateKey makes a symmetric encryption key and returns its ARN.
func (s *Server) CreateKey() string { return s.CreateKeyOf(symmetric, encryptDecrypt) }

// CreateKeyOf makes a key of another kind, "RSA_2048" and "SIGN_VERIFY" say, to
// be described and refused. It returns the key's ARN.
func (s *Server) CreateKeyOf(spec, usage string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.newKey(spec, usage, "").arn
}

func (s *Server) newKey(spec, usage, description string) *key {
	id := newUUID()
	k := &key{
		id: id, arn: s.arn("key/" + id),
		spec: spec, usage: usage, description: description,
		state: Enabled, created: time.Now(),
	}
	if spec == symmetric {
		k.rotate()
	}
	s.keys[id] = k
	return k
}

func (s *Server) arn(resource string) string {
	return "arn:aws:kms:" + s.config.Region + ":" + s.config.Account + ":" + resource
}

// Rotate makes a new key material, current at once, and returns its ID.
func (s *Server) Rotate(arn string) string {
	var id string
	s.change(arn, func(k *key) { id = k.rotate() })
	return id
}

func (k *key) rotate() string {
	block, err := aes.NewCipher(randomBytes(32))
	if err != nil {
		panic(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	m := material{id: [32]byte(randomBytes(32)), aead: aead, made: time.Now()}
	k.materials = append(k.materials, m)
	return m.name()
}

// Lag says which actions go on with the key material that is current now, as an
// eventually consistent KMS may for a while after a rotation.
type Lag struct {
	DescribeKey bool
	Encrypt     bool // GenerateDataKey and ReEncrypt too
}

// SetLag makes actions lag until the next SetLag of that key; Lag{} catches up.
func (s *Server) SetLag(arn string, l Lag) {
	s.change(arn, func(k *key) { k.lag, k.lagged = l, len(k.materials)-1 })
}

// current is the material that an action sees as current.
func (k *key) current(lagging bool) material {
	if lagging {
		return k.materials[k.lagged]
	}
	return k.materials[len(k.materials)-1]
}

// Disable disables a key.
func (s *Server) Disable(arn string) { s.SetState(arn, Disabled) }

// Enable makes a key usable again, from any state.
func (s *Server) Enable(arn string) { s.SetState(arn, Enabled) }

// ScheduleDeletion makes a key pending deletion in 30 days. The server never
// deletes it.
func (s *Server) ScheduleDeletion(arn string) { s.SetState(arn, PendingDeletion) }

// SetState puts a key in a state.
func (s *Server) SetState(arn, state string) {
	s.change(arn, func(k *key) {
		k.state, k.deletion = state, time.Time{}
		if state == PendingDeletion {
			k.deletion = time.Now().AddDate(0, 0, 30)
		}
	})
}

// Delete deletes a key with its aliases, now and for ever.
func (s *Server) Delete(arn string) {
	s.change(arn, func(k *key) {
		delete(s.keys, k.id)
		for alias, id := range s.aliases {
			if id == k.id {
				delete(s.aliases, alias)
			}
		}
	})
}

// SetAlias points alias/NAME to a key, whether the alias exists or not.
func (s *Server) SetAlias(alias, arn string) {
	s.change(arn, func(k *key) { s.aliases[alias] = k.id })
}

// change is how tests change a key; one that does not exist is a mistake of the test.
func (s *Server) change(arn string, do func(*key)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k, refused := s.find(arn)
	if refused != nil {
		panic("awskmstest: " + refused.message)
	}
	do(k)
}

// find resolves a key ID, key ARN, alias name or alias ARN.
func (s *Server) find(id string) (*key, *apiError) {
	name := id
	if strings.HasPrefix(id, "arn:") {
		parts := strings.SplitN(id, ":", 6)
		switch {
		case len(parts) < 6 || parts[1] != "aws" || parts[2] != "kms":
			return nil, refuse("InvalidArnException", "%s is not a valid ARN", id)
		case parts[3] != s.config.Region:
			return nil, refuse("NotFoundException", "Invalid arn %s", parts[3])
		case parts[4] != s.config.Account:
			return nil, refuse("NotFoundException", "Key '%s' does not exist", id)
		}
		name = strings.TrimPrefix(parts[5], "key/")
	}
	if strings.HasPrefix(name, "alias/") {
		target, ok := s.aliases[name]
		if !ok {
			return nil, refuse("NotFoundException", "Alias %s is not found.", s.arn(name))
		}
		name = target
	}
	k, ok := s.keys[name]
	if !ok {
		return nil, refuse("NotFoundException", "Key '%s' does not exist", s.arn("key/"+name))
	}
	return k, nil
}

// findByID is find for the operations that take no alias.
func (s *Server) findByID(id string) (*key, *apiError) {
	if strings.Contains(id, "alias/") {
		return nil, refuse("NotFoundException", "Invalid keyId '%s'", id)
	}
	return s.find(id)
}

// usable refuses what a key in another state than Enabled answers.
func (k *key) usable() *apiError {
	switch k.state {
	case Enabled:
		return nil
	case Disabled:
		return refuse("DisabledException", "%s is disabled.", k.arn)
	case PendingDeletion:
		return refuse("KMSInvalidStateException", "%s is pending deletion.", k.arn)
	case PendingImport:
		return refuse("KMSInvalidStateException", "%s is pending import.", k.arn)
	}
	return refuse("KMSInvalidStateException", "%s is %s.", k.arn, strings.ToLower(k.state))
}

// canEncrypt refuses keys that are not for symmetric encryption, or not usable.
func (k *key) canEncrypt() *apiError {
	if refused := k.usable(); refused != nil {
		return refused
	}
	if k.usage != encryptDecrypt {
		return refuse("InvalidKeyUsageException", "%s key usage is %s which is not valid for this operation.", k.arn, k.usage)
	}
	if k.spec != symmetric {
		return refuse("UnsupportedOperationException", "awskmstest encrypts with %s keys only", symmetric)
	}
	return nil
}

// A ciphertext blob is 152 bytes longer than its plaintext, as AWS's are:
//
//	magic(5) ‖ key ID(16) ‖ material ID(32) ‖ random(71) ‖ nonce(12) ‖ AES-256-GCM(plaintext)+tag(16)
//
// Everything before the nonce, the key's ARN and the encryption context are
// additional authenticated data.
const (
	blobMagic   = "\x01\x02\x02\x00\x78"
	keyIDEnd    = len(blobMagic) + 16
	materialEnd = keyIDEnd + 32
	headerSize  = materialEnd + 71
	nonceSize   = 12
)

func (k *key) seal(m material, plaintext []byte, context map[string]string) []byte {
	blob := make([]byte, headerSize+nonceSize, headerSize+nonceSize+len(plaintext)+16)
	rand.Read(blob)
	copy(blob, blobMagic)
	copy(blob[len(blobMagic):], uuidBytes(k.id))
	copy(blob[keyIDEnd:], m.id[:])
	return m.aead.Seal(blob, blob[headerSize:], plaintext, k.aad(blob, context))
}

func (k *key) aad(blob []byte, context map[string]string) []byte {
	bound, err := json.Marshal(context) // sorts the names
	if err != nil {
		panic(err)
	}
	if len(context) == 0 {
		bound = nil
	}
	return slices.Concat(blob[:headerSize], []byte(k.arn), bound)
}

// open decrypts a blob. The key is the one that keyID names, or the blob's own
// where keyID is empty.
func (s *Server) open(blob []byte, keyID string, context map[string]string) (*key, material, []byte, *apiError) {
	fail := func(e *apiError) (*key, material, []byte, *apiError) { return nil, material{}, nil, e }
	damaged := refuse("InvalidCiphertextException", "")
	if len(blob) < headerSize+nonceSize || string(blob[:len(blobMagic)]) != blobMagic {
		return fail(damaged)
	}
	k, ok := s.keys[uuidString(blob[len(blobMagic):keyIDEnd])]
	if !ok {
		return fail(damaged)
	}
	if keyID != "" {
		pinned, refused := s.find(keyID)
		if refused != nil {
			return fail(refused)
		}
		if pinned != k {
			return fail(refuse("IncorrectKeyException", "The key ID in the request does not identify a CMK that can perform this operation."))
		}
	}
	if refused := k.canEncrypt(); refused != nil {
		return fail(refused)
	}
	for _, m := range k.materials {
		if string(m.id[:]) != string(blob[keyIDEnd:materialEnd]) {
			continue
		}
		plaintext, err := m.aead.Open(nil, blob[headerSize:headerSize+nonceSize], blob[headerSize+nonceSize:], k.aad(blob, context))
		if err != nil {
			return fail(damaged)
		}
		return k, m, plaintext, nil
	}
	return fail(damaged)
}

func uuidBytes(id string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(id, "-", ""))
	if err != nil {
		panic(err)
	}
	return b
}

func uuidString(b []byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

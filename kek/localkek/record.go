package localkek

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"golang.org/x/crypto/cryptobyte"

	"github.com/kube-kek/kube-kek/kek"
)

// What kube-apiserver stores for one seed, byte for byte. All of it is kept once
// per Secret, so every byte counts.
//
//	ciphertext   ┌────────────┬───────────┬─────────────────────────┐
//	             │ version 01 │ nonce (12)│ sealed seed (seed + 16) │
//	             └────────────┴───────────┴─────────────────────────┘
//	key_id       see KeyID
//	annotation   "local-kek.kube-kek.io":
//	             ┌────────────┬──────────┬──────────────────────────────────────┐
//	             │ version 01 │ length 2 │ one or more wraps of the local KEK:  │
//	             │            │          │ ┌──────────┬──────┬──────────┬─────┐ │
//	             │            │          │ │ length 1 │ name │ length 2 │ wrap│ │
//	             └────────────┴──────────┴─┴──────────┴──────┴──────────┴─────┴─┘
//
// Lengths are big endian. A name says whose KEK made the wrap; the empty name is
// the KEK of key_id, and exactly one wrap has it. Names are there for other
// recipients of the same local KEK, such as a standby KEK.
//
// The seed is sealed with AES-256-GCM. Its additional data is
//
//	"kube-kek.io/seed" ‖ version 01 ‖ cluster ‖ key_id ‖ annotation value
//
// the last three each behind their length in two bytes. A change of any bit of
// ciphertext, key ID or annotation is therefore an error, as is any swap of them
// between records that do not share one local KEK.
const (
	recordVersion = 1

	// AnnotationName is the one annotation of a record.
	AnnotationName = "local-kek.kube-kek.io"

	nonceSize = 12
	tagSize   = 16
	overhead  = 1 + nonceSize + tagSize

	// MaxSeed is the largest seed in bytes: the KMS v2 API limits the ciphertext
	// to 1024. kube-apiserver's seeds are 32 bytes.
	MaxSeed = 1024 - overhead

	// maxAnnotation is the largest annotation value in bytes that is read: room
	// for several wraps of the largest home (RSA-4096: 512 bytes).
	maxAnnotation = 4096
)

// wrap is one entry of the annotation's list.
type wrap struct {
	Recipient  string // "" is the KEK that key_id names
	Ciphertext []byte
}

func encodeAnnotation(wraps []wrap) ([]byte, error) {
	b := cryptobyte.NewBuilder(nil)
	b.AddUint8(recordVersion)
	b.AddUint16LengthPrefixed(func(list *cryptobyte.Builder) {
		for _, w := range wraps {
			list.AddUint8LengthPrefixed(func(c *cryptobyte.Builder) { c.AddBytes([]byte(w.Recipient)) })
			list.AddUint16LengthPrefixed(func(c *cryptobyte.Builder) { c.AddBytes(w.Ciphertext) })
		}
	})
	out, err := b.Bytes()
	if err == nil && len(out) > maxAnnotation {
		err = fmt.Errorf("%d bytes, at most %d", len(out), maxAnnotation)
	}
	if err != nil {
		return nil, fmt.Errorf("encoding annotation %s: %w: %w", AnnotationName, err, kek.Invalid)
	}
	return out, nil
}

// decodeAnnotation is the inverse of encodeAnnotation. It accepts only what that
// makes, so that decoding and encoding gives the same bytes, with exactly one
// wrap by the KEK of the key ID.
func decodeAnnotation(value []byte) ([]wrap, error) {
	bad := func(why string) ([]wrap, error) {
		return nil, fmt.Errorf("annotation %s of the record: %s: %w", AnnotationName, why, kek.Invalid)
	}
	if len(value) > maxAnnotation {
		return bad(fmt.Sprintf("%d bytes, at most %d", len(value), maxAnnotation))
	}
	var version uint8
	var list cryptobyte.String
	in := cryptobyte.String(value)
	if !in.ReadUint8(&version) {
		return bad("empty")
	}
	if version != recordVersion {
		return bad(fmt.Sprintf("version %d, this plugin reads version %d", version, recordVersion))
	}
	if !in.ReadUint16LengthPrefixed(&list) || !in.Empty() {
		return bad("cut short or too long")
	}
	var wraps []wrap
	own := 0
	for !list.Empty() {
		var name, ciphertext cryptobyte.String
		if !list.ReadUint8LengthPrefixed(&name) || !list.ReadUint16LengthPrefixed(&ciphertext) || len(ciphertext) == 0 {
			return bad("a wrap is cut short or empty")
		}
		if len(name) == 0 {
			own++
		}
		wraps = append(wraps, wrap{string(name), ciphertext})
	}
	if own != 1 {
		return bad(fmt.Sprintf("%d wraps by the KEK of the key ID, not one", own))
	}
	return wraps, nil
}

// ownWrap returns the wrap by the KEK of the key ID.
func ownWrap(wraps []wrap) []byte {
	for _, w := range wraps {
		if w.Recipient == "" {
			return w.Ciphertext
		}
	}
	return nil
}

// additionalData is what every seed under one local KEK is bound to. Its parts
// were bounded far below 64 KiB before.
func additionalData(cluster, keyID string, annotation []byte) []byte {
	b := make([]byte, 0, 32+len(cluster)+len(keyID)+len(annotation))
	b = append(b, "kube-kek.io/seed"...)
	b = append(b, recordVersion)
	b = append(binary.BigEndian.AppendUint16(b, uint16(len(cluster))), cluster...)
	b = append(binary.BigEndian.AppendUint16(b, uint16(len(keyID))), keyID...)
	return append(binary.BigEndian.AppendUint16(b, uint16(len(annotation))), annotation...)
}

// identity names a local KEK within a ring: the hash of its additional data.
type identity [sha256.Size]byte

func identify(additionalData []byte) identity { return sha256.Sum256(additionalData) }

// Sealed is an encrypted seed, as KMS v2's EncryptResponse and DecryptRequest
// hold it.
type Sealed struct {
	KeyID       string
	Ciphertext  []byte
	Annotations map[string][]byte
}

// annotation returns the value of the one annotation that a record must have.
func (s Sealed) annotation() ([]byte, error) {
	value, ok := s.Annotations[AnnotationName]
	if !ok {
		return nil, fmt.Errorf("record under %s has no annotation %s: not written by this plugin, or its annotations were lost: %w",
			quoteCut(s.KeyID), AnnotationName, kek.Invalid)
	}
	if len(s.Annotations) != 1 {
		return nil, fmt.Errorf("record under %s has %d annotations where this plugin writes one (%s): %w",
			quoteCut(s.KeyID), len(s.Annotations), AnnotationName, kek.Invalid)
	}
	return value, nil
}

// checkSizes refuses what is too large to be ours before it is framed and hashed.
func checkSizes(keyID string, annotation []byte) error {
	switch {
	case len(keyID) > MaxKeyID:
		return fmt.Errorf("key ID %s is not of this plugin: %d bytes, at most %d: %w", quoteCut(keyID), len(keyID), MaxKeyID, kek.Invalid)
	case len(annotation) > maxAnnotation:
		return fmt.Errorf("annotation %s of %d bytes, at most %d: %w", AnnotationName, len(annotation), maxAnnotation, kek.Invalid)
	}
	return nil
}

// checkCiphertext refuses what cannot be a sealed seed before anyone is asked.
func checkCiphertext(c []byte) error {
	switch {
	case len(c) <= overhead || len(c) > overhead+MaxSeed:
		return fmt.Errorf("ciphertext of %d bytes, not %d to %d: %w", len(c), overhead+1, overhead+MaxSeed, kek.Invalid)
	case c[0] != recordVersion:
		return fmt.Errorf("ciphertext of version %d, this plugin reads version %d: %w", c[0], recordVersion, kek.Invalid)
	}
	return nil
}

// aead is what a local KEK does: Tink's AES-256-GCM, which puts a random nonce
// before what it seals.
type aead interface {
	Encrypt(plaintext, additionalData []byte) ([]byte, error)
	Decrypt(ciphertext, additionalData []byte) ([]byte, error)
}

func sealSeed(a aead, seed, aad []byte) ([]byte, error) {
	sealed, err := a.Encrypt(seed, aad)
	if err != nil {
		return nil, fmt.Errorf("sealing seed: %w: %w", err, kek.Unknown)
	}
	return append([]byte{recordVersion}, sealed...), nil
}

func openSeed(a aead, ciphertext, aad []byte) ([]byte, error) {
	seed, err := a.Decrypt(ciphertext[1:], aad)
	if err != nil {
		return nil, kek.Corrupt // the caller says which record; the AEAD has nothing to add
	}
	return seed, nil
}

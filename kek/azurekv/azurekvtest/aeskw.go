package azurekvtest

import (
	"bytes"
	"crypto/aes"
	"crypto/subtle"
	"encoding/binary"
)

// keyWrapIV is the initial value that tells a good unwrap (RFC 3394, section 2.2.3.1).
var keyWrapIV = bytes.Repeat([]byte{0xA6}, 8)

// wrapAES wraps by RFC 3394, section 2.2.1. It returns nil for what A256KW does
// not take: less than 16 bytes, or not a multiple of 8.
func wrapAES(key, plaintext []byte) []byte {
	block, err := aes.NewCipher(key)
	if err != nil || len(plaintext) < 16 || len(plaintext)%8 != 0 {
		return nil
	}
	out := append(bytes.Clone(keyWrapIV), plaintext...)
	b := make([]byte, 16)
	n := len(plaintext) / 8
	for t := uint64(1); t <= uint64(6*n); t++ {
		r := out[8*(1+(int(t)-1)%n):][:8]
		copy(b, out[:8])
		copy(b[8:], r)
		block.Encrypt(b, b)
		binary.BigEndian.PutUint64(out, binary.BigEndian.Uint64(b)^t)
		copy(r, b[8:])
	}
	return out
}

// unwrapAES undoes wrapAES (section 2.2.2), and returns nil for what it did not make.
func unwrapAES(key, ciphertext []byte) []byte {
	block, err := aes.NewCipher(key)
	if err != nil || len(ciphertext) < 24 || len(ciphertext)%8 != 0 {
		return nil
	}
	out := bytes.Clone(ciphertext)
	b := make([]byte, 16)
	n := len(ciphertext)/8 - 1
	for t := uint64(6 * n); t >= 1; t-- {
		r := out[8*(1+(int(t)-1)%n):][:8]
		binary.BigEndian.PutUint64(b, binary.BigEndian.Uint64(out)^t)
		copy(b[8:], r)
		block.Decrypt(b, b)
		copy(out, b[:8])
		copy(r, b[8:])
	}
	if subtle.ConstantTimeCompare(out[:8], keyWrapIV) != 1 {
		return nil
	}
	return out[8:]
}

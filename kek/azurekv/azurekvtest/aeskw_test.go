package azurekvtest

import (
	"bytes"
	"encoding/hex"
	"testing"
)

// The vectors of RFC 3394, sections 4.3, 4.5 and 4.6: keys of 256 bits.
func TestAESKeyWrap(t *testing.T) {
	const kek = "000102030405060708090A0B0C0D0E0F101112131415161718191A1B1C1D1E1F"
	for plaintext, want := range map[string]string{
		"00112233445566778899AABBCCDDEEFF":                                 "64E8C3F9CE0F5BA263E9777905818A2A93C8191E7D6E8AE7",
		"00112233445566778899AABBCCDDEEFF0001020304050607":                 "A8F9BC1612C68B3FF6E6F4FBE30E71E4769C8B80A32CB8958CD5D17D6B254DA1",
		"00112233445566778899AABBCCDDEEFF000102030405060708090A0B0C0D0E0F": "28C9F404C4B810F4CBCCB35CFB87F8263F5786E2D80ED326CBC7F0E71A99F43BFB988B9B7A02DD21",
	} {
		key, plain, wrapped := unhex(t, kek), unhex(t, plaintext), unhex(t, want)
		if got := wrapAES(key, plain); !bytes.Equal(got, wrapped) {
			t.Errorf("wrapped %d bytes: %x, want %x", len(plain), got, wrapped)
		}
		if got := unwrapAES(key, wrapped); !bytes.Equal(got, plain) {
			t.Errorf("unwrapped %d bytes: %x, want %x", len(wrapped), got, plain)
		}
		wrapped[3] ^= 1
		if got := unwrapAES(key, wrapped); got != nil {
			t.Errorf("unwrapped what was damaged: %x", got)
		}
	}
	for _, n := range []int{0, 8, 15, 17} {
		if wrapAES(unhex(t, kek), make([]byte, n)) != nil {
			t.Errorf("wrapped %d bytes", n)
		}
	}
}

func unhex(t testing.TB, s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

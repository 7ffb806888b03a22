package conformance

import (
	"encoding/base64"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestAPlaintextIsFoundHoweverItIsWritten(t *testing.T) {
	plaintext := []byte("Zq3vXnb81LmPqRtYw0KdUeHg5JsAoCfi")
	binary := []byte("\x00\xff\x10\x80\x07\xfe\x01\x99\x20\x88\x3c\xd2\x00\x01\x02\x03")
	for name, test := range map[string]struct {
		text  string
		shown bool
	}{
		"as it is":                         {"cannot encrypt Zq3vXnb81LmPqRtYw0KdUeHg5JsAoCfi: no", true},
		"quoted":                           {fmt.Sprintf("cannot encrypt %q", plaintext), true},
		"in part":                          {"…3vXnb81LmPqRtYw0K…", true},
		"in hex":                           {fmt.Sprintf("cannot encrypt %x", plaintext), true},
		"in capital hex":                   {fmt.Sprintf("cannot encrypt %X", binary), true},
		"in hex behind an odd digit":       {fmt.Sprintf("f%x", plaintext), true},
		"in base64":                        {"data=" + base64.StdEncoding.EncodeToString(plaintext), true},
		"in base64 for URLs":               {"data=" + base64.RawURLEncoding.EncodeToString(binary), true},
		"in base64 with more before it":    {base64.StdEncoding.EncodeToString(append([]byte("x="), plaintext...)), true},
		"as a list of numbers":             {fmt.Sprintf("cannot encrypt %v", plaintext), true},
		"as a Go slice":                    {fmt.Sprintf("cannot encrypt %d", binary), true},
		"a word of it":                     {"cannot encrypt Zq3vXnb", false},
		"another text":                     {"cannot encrypt 32 bytes: the key arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab is disabled", false},
		"a request ID and a list of ports": {"c0ffee00-0000-4000-a000-000000000001 [1 2 3 4 5 6 7 8 9]", false},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSecrets()
			s.add(plaintext)
			s.add(binary)
			if how, shown := s.shownIn([]byte(test.text)); shown != test.shown {
				t.Errorf("shown: %v (%s), want %v", shown, how, test.shown)
			}
		})
	}
}

func TestCredentialsAreToldFromKeyIDs(t *testing.T) {
	for text, want := range map[string]string{
		"awskms:arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab@6ad5f0c2": "",
		"projects/p/locations/global/keyRings/r/cryptoKeys/secrets/cryptoKeyVersions/3":               "",
		"https://vault.example.com:8200/transit/keys/tokens":                                          "",
		"hashivault:kubernetes-secret@v4":                                                             "",
		"pkcs11:token=my-token;object=kek-1":                                                          "",
		"decrypting secret: annotations missing":                                                      "",
		`{"client_secret": "abcdef123456"}`:                                                           "a named secret",
		"AKIAIOSFODNN7EXAMPLE":                                                                        "an AWS access key ID",
		"key?token=abcdef123456":                                                                      "a named secret",
		"https://user:hunter2@vault.example.com/":                                                     "a password in a URL",
		"hvs.CAESIJ0000000000000000000000000000000":                                                   "a Vault or OpenBao token",
		"-----BEGIN RSA PRIVATE KEY-----":                                                             "a private key",
	} {
		if what, _ := looksSecret(text); what != want {
			t.Errorf("%q looks like %q, want %q", text, what, want)
		}
	}
}

func TestAnEndpointIsAUnixSocket(t *testing.T) {
	for endpoint, want := range map[string]target{
		"unix:///run/kms.sock": {path: "/run/kms.sock"},
		"unix:/run/kms.sock":   {path: "/run/kms.sock"},
		"unix:@kms":            {path: "@kms", abstract: true},
		"unix:///@kms":         {path: "@kms", abstract: true},
		"/run/kms.sock":        {},
		"unix://":              {},
		"unix:///":             {},
		"unix:@":               {},
		"unix://kms.sock":      {},
		"tcp://127.0.0.1:80":   {},
		"":                     {},
	} {
		got, err := parseEndpoint(endpoint)
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(target{})); diff != "" || (err == nil) != (want.path != "") {
			t.Errorf("%q: %v (-want +got):\n%s", endpoint, err, diff)
		}
	}
}

package localkek

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kube-kek/kube-kek/kek"
)

func TestKeyIDsAreTakenApartAndPutTogether(t *testing.T) {
	for s, want := range map[string]KeyID{
		"awskms:arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab@6ad5f0": {
			Scheme: "awskms", ID: "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab", Version: "6ad5f0"},
		"tink-keyset:/etc/kube-kek/keyset.json@3141592653~2": {Scheme: "tink-keyset", ID: "/etc/kube-kek/keyset.json", Version: "3141592653", Epoch: 2},
		"tink-keyset:/odd@name~7+x/keyset@1+0123abcd~999":    {Scheme: "tink-keyset", ID: "/odd@name~7+x/keyset", Version: "1", Fingerprint: "0123abcd", Epoch: 999},
	} {
		got, err := ParseKeyID(s)
		if err != nil {
			t.Errorf("%s: %v", s, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: (-want +got)\n%s", s, diff)
		}
		if got.String() != s {
			t.Errorf("%s came back as %s", s, got)
		}
	}
}

func TestForeignKeyIDsAreRefused(t *testing.T) {
	for name, s := range map[string]string{
		"empty":                      "",
		"another plugin's ARN":       "arn:aws:kms:us-east-1:111122223333:key/x",
		"no version":                 "fake:key",
		"an empty version":           "fake:key@",
		"an empty key":               "fake:@1",
		"an epoch of zero":           "fake:key@1~0",
		"an epoch with zeroes ahead": "fake:key@1~02",
		"an epoch too large":         "fake:key@1~1000",
		"a short fingerprint":        "fake:key@1+abc",
		"an upper-case scheme":       "Fake:key@1",
		"white space":                "fake:a key@1",
		"a version too long":         "fake:key@" + strings.Repeat("1", 33),
		"longer than is stored":      "fake:" + strings.Repeat("k", 200) + "@1",
		"not ASCII":                  "fake:kéy@1",
		"a line break":               "fake:key@1\n",
	} {
		if got, err := ParseKeyID(s); !errors.Is(err, kek.Invalid) {
			t.Errorf("%s: got %+v, error %v, want Invalid", name, got, err)
		}
	}
}

func FuzzKeyID(f *testing.F) {
	f.Add("fake:key@1+0123abcd~2")
	f.Add("awskms:arn:aws:kms:eu-west-1:111122223333:key/x@6ad5f0")
	f.Fuzz(func(t *testing.T, s string) {
		k, err := ParseKeyID(s)
		if err != nil {
			if !errors.Is(err, kek.Invalid) {
				t.Errorf("error %v is not Invalid", err)
			}
			return
		}
		if k.String() != s {
			t.Errorf("%q came back as %q", s, k.String())
		}
	})
}

func TestAnnotationsOfSeveralRecipientsAreRead(t *testing.T) {
	want := []wrap{{"", []byte("own")}, {"standby", []byte("other")}}
	value, err := encodeAnnotation(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeAnnotation(value)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if own := ownWrap(got); string(own) != "own" {
		t.Errorf("own wrap is %q", own)
	}
}

func TestBadAnnotationsAreRefused(t *testing.T) {
	for name, value := range map[string][]byte{
		"empty":                  {},
		"another version":        {2, 0, 0},
		"no list":                {1},
		"an empty list":          {1, 0, 0},
		"an empty wrap":          {1, 0, 3, 0, 0, 0},
		"a wrap cut short":       {1, 0, 4, 0, 0, 9, 'x'},
		"bytes behind the list":  {1, 0, 4, 0, 0, 1, 'x', 0},
		"two wraps by one KEK":   {1, 0, 8, 0, 0, 1, 'x', 0, 0, 1, 'y'},
		"no wrap of the key ID":  {1, 0, 5, 1, 'n', 0, 1, 'x'},
		"more than is ever read": bytes.Repeat([]byte{1}, maxAnnotation+1),
	} {
		if got, err := decodeAnnotation(value); !errors.Is(err, kek.Invalid) {
			t.Errorf("%s: got %v, error %v, want Invalid", name, got, err)
		}
	}
	if _, err := encodeAnnotation([]wrap{{Ciphertext: make([]byte, maxAnnotation)}}); !errors.Is(err, kek.Invalid) {
		t.Errorf("a wrap too large to be read again: %v, want Invalid", err)
	}
}

// Both ways: what is decoded encodes to the same bytes, and what is encoded
// decodes to the same wraps.
func FuzzAnnotation(f *testing.F) {
	f.Add([]byte{1, 0, 4, 0, 0, 1, 'x'})
	f.Add([]byte{1, 0, 9, 0, 0, 1, 'x', 1, 'n', 0, 1, 'y'})
	f.Fuzz(func(t *testing.T, value []byte) {
		wraps, err := decodeAnnotation(value)
		if err != nil {
			if !errors.Is(err, kek.Invalid) {
				t.Errorf("error %v is not Invalid", err)
			}
			return
		}
		again, err := encodeAnnotation(wraps)
		if err != nil || !bytes.Equal(again, value) {
			t.Errorf("%x came back as %x, error %v", value, again, err)
		}
	})
}

func FuzzFile(f *testing.F) {
	f.Add([]byte(`{"version":1,"records":[{"keyID":"fake:key@1","ciphertext":"AQI=","annotation":"AQAEAAABeA=="}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if known, err := parseFile(data); err != nil && known != nil {
			t.Error("records and an error")
		}
	})
}

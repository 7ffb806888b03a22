package localkek

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/kube-kek/kube-kek/kek"
)

const (
	// MaxKeyID is the largest key ID in bytes that we make, for every home. The
	// KMS v2 API allows 1024, but a key ID is stored with every record.
	MaxKeyID = 200

	// maxVersion is how much of a home's version goes into a key ID. 32 bytes
	// hold every version whole but AWS's (64 hex digits), of which 128 bits are
	// left, and AWS does not need them to unwrap.
	maxVersion = 32

	// MaxEpoch is the largest epoch that an operator may set.
	MaxEpoch = 999
)

// KeyID is a KMS v2 key_id taken apart:
//
//	awskms:arn:aws:kms:eu-west-1:111122223333:key/1234…@6ad5f0…
//	tink-keyset:/etc/kube-kek/keyset.json@3141592653~2
//	└ Scheme    └ ID                      └ Version  └ Epoch
//
// It is readable on purpose: in a disaster, a record must say which key opens
// it. It names the remote KEK and never a local one (KEP-3299), and it holds no
// secret.
type KeyID struct {
	Scheme  string // of the home's URI
	ID      string // kek.KeyRef.ID
	Version string // kek.KeyRef.Version, cut to 32 bytes

	// Fingerprint names the other recipients that can open the local KEK. It is
	// empty where there are none.
	Fingerprint string

	// Epoch is set by the operator so that a key which comes back after it was
	// left (A→B→A) has a name that was never used before. 0 is not written.
	Epoch int
}

// An ID may hold any of these characters, @ + ~ among them: the last @ ends it,
// and what follows has none.
var (
	schemePattern = regexp.MustCompile(`^[a-z][a-z0-9-]{0,31}$`)
	idPattern     = regexp.MustCompile(`^[!-~]+$`)
	tailPattern   = regexp.MustCompile(`^([A-Za-z0-9._-]{1,32})(?:\+([0-9a-f]{8}))?(?:~([1-9][0-9]{0,2}))?$`)
)

// String returns the key ID as it is stored.
func (k KeyID) String() string {
	s := k.Scheme + ":" + k.ID + "@" + k.Version
	if k.Fingerprint != "" {
		s += "+" + k.Fingerprint
	}
	if k.Epoch != 0 {
		s += "~" + strconv.Itoa(k.Epoch)
	}
	return s
}

// ParseKeyID takes a key ID apart. What it accepts, String gives back to the
// byte. The error is [kek.Invalid] and quotes the key ID, cut where it is long.
func ParseKeyID(s string) (KeyID, error) {
	bad := func(why string) (KeyID, error) {
		return KeyID{}, fmt.Errorf("key ID %s is not of this plugin: %s: %w", quoteCut(s), why, kek.Invalid)
	}
	if len(s) > MaxKeyID {
		return bad(fmt.Sprintf("%d bytes, at most %d", len(s), MaxKeyID))
	}
	scheme, rest, ok := strings.Cut(s, ":")
	if !ok || !schemePattern.MatchString(scheme) {
		return bad("no scheme such as \"awskms:\" before the key")
	}
	at := strings.LastIndexByte(rest, '@')
	if at < 0 || !idPattern.MatchString(rest[:at]) {
		return bad("no key before an @ and a version")
	}
	tail := tailPattern.FindStringSubmatch(rest[at+1:])
	if tail == nil {
		return bad("no version behind the last @")
	}
	k := KeyID{Scheme: scheme, ID: rest[:at], Version: tail[1], Fingerprint: tail[2]}
	if tail[3] != "" {
		k.Epoch, _ = strconv.Atoi(tail[3]) // three digits at most
	}
	return k, nil
}

// cut shortens a home's version as key IDs hold it.
func cut(ref kek.KeyRef) kek.KeyRef {
	if len(ref.Version) > maxVersion {
		ref.Version = ref.Version[:maxVersion]
	}
	return ref
}

func quoteCut(s string) string {
	if len(s) > MaxKeyID {
		return strconv.QuoteToASCII(s[:MaxKeyID]) + "…"
	}
	return strconv.QuoteToASCII(s)
}

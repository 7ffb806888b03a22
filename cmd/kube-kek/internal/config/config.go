// Package config is the configuration of kube-kek serve: its fields, their
// defaults and bounds, and a strict reader of the YAML file.
//
// A reader who made five mistakes hears of five mistakes, each with the path of
// its field and its place: an unknown field, a field said twice, a value of the
// wrong type or out of bounds, two fields that contradict each other.
package config

import (
	"fmt"
	"io/fs"
	"strconv"
	"strings"
	"time"
)

// APIVersion is the one version of the file's format.
const APIVersion = "kube-kek.io/v1"

// Config is one file. [Default] gives the defaults that are named here.
type Config struct {
	// APIVersion is required: kube-kek.io/v1.
	APIVersion string `yaml:"apiVersion"`

	// Cluster is the cluster's name: 1 to 63 letters, digits, '-', '_' and '.'.
	// Required. Every wrap and every seal is bound to it, so a record cannot be
	// opened under another name: choose it once.
	Cluster string `yaml:"cluster"`

	// Binding holds more pairs that every wrap is bound to beside the cluster's
	// name, where the home can bind (AWS: the encryption context, which IAM
	// policies can demand). At most 8 pairs; not secret; as final as Cluster.
	Binding map[string]string `yaml:"binding"`

	// KEK is the key that writes use. Required.
	KEK KEK `yaml:"kek"`

	// Previous are keys that only decrypt, at most 16: the homes that records
	// were written under before. A record under any other key is refused.
	Previous []KEK `yaml:"previous"`

	// Lease is how long local KEKs may be used without a fresh word from their
	// KEK: the longest outage of the KMS that goes unnoticed, and the longest
	// time that a key can stay in use behind a KMS that cannot be reached to
	// say no. 0 to 168h, default 12h. 0 is the strict mode: the KMS is asked
	// for each Encrypt and Decrypt.
	Lease Duration `yaml:"lease"`

	// Renew is how often each key version in use is asked for that word, 1s to
	// 24h and below Lease, default 5m. A rotation is seen within this time.
	Renew Duration `yaml:"renew"`

	// MaxUses is how many seeds one local KEK may seal before another is made,
	// 1 to 4294967296, default 16777216. The upper bound is AES-256-GCM's for
	// random nonces (NIST SP 800-38D, 8.3).
	MaxUses uint64 `yaml:"maxUses"`

	// CacheSize is how many local KEKs are held in memory, 1 to 65536, default
	// 4096. One is needed for each start of each apiserver's plugin and key
	// version since the records were last rewritten.
	CacheSize int `yaml:"cacheSize"`

	// Timeouts bound the calls to the KMS.
	Timeouts Timeouts `yaml:"timeouts"`

	// Socket is where kube-apiserver finds the plugin.
	Socket Socket `yaml:"socket"`

	// Health is the HTTP listener of /metrics, /livez and /readyz.
	Health Health `yaml:"health"`

	// Audit is the log of each Encrypt and Decrypt. None is written without a path.
	Audit Audit `yaml:"audit"`

	// Log is the daemon's own log, on stderr.
	Log Log `yaml:"log"`
}

// KEK names one key encryption key and how to reach it.
type KEK struct {
	// URI is the key: awskms:///ARN, awskms:///alias/NAME, awskms://HOST/ARN or
	// tink-keyset:///ABSOLUTE/PATH. Required.
	URI string `yaml:"uri"`

	// Epoch, 0 to 999, becomes part of the key ID where it is not 0. Raise it
	// when writes come back to a key that they once left (A, B, A): Kubernetes
	// must not see the same key ID again. Only of kek, never of previous.
	Epoch int `yaml:"epoch"`

	// AWS is only for an awskms URI. What it leaves out comes from the ARN and
	// the SDK's own chain: environment, shared files, web identity, instance role.
	AWS AWS `yaml:"aws"`
}

// AWS says how to reach an AWS KMS key.
type AWS struct {
	// Region of the key; needed for a key that is not named by an ARN where the
	// environment does not say it.
	Region string `yaml:"region"`

	// Endpoint is a URL instead of the region's own: a VPC endpoint. https,
	// except on loopback. Not together with a host in the URI.
	Endpoint string `yaml:"endpoint"`

	// RoleARN is a role to assume with the credentials that the chain finds.
	RoleARN string `yaml:"roleARN"`

	// ExternalID is sent when RoleARN is assumed.
	ExternalID string `yaml:"externalID"`

	// CABundle is the absolute path of a PEM file with the authorities that
	// Endpoint's certificate is checked against, instead of the system's.
	CABundle string `yaml:"caBundle"`
}

// Timeouts bound the calls to the KMS. kube-apiserver gives up after 3 s, so
// both must end before it does.
type Timeouts struct {
	// Attempt bounds a single try of a call, at least 10ms, default 1s.
	Attempt Duration `yaml:"attempt"`

	// Call bounds a call with all its tries, at least Attempt and below 3s,
	// default 2.5s.
	Call Duration `yaml:"call"`
}

// Socket is the unix socket that the plugin listens on.
type Socket struct {
	// Path is absolute and at most 107 bytes (unix(7)), in a directory that only
	// its owner may write to. Required. Under systemd's socket activation it is
	// the unit's ListenStream=.
	Path string `yaml:"path"`

	// Mode is octal, "0600" (default) or "0660".
	Mode Mode `yaml:"mode"`

	// UID and GID, if set, become the socket file's owner; -1 (default) leaves
	// the process's own.
	UID int `yaml:"uid"`
	GID int `yaml:"gid"`

	// AllowedUIDs are the users whose connections are served, by the kernel's
	// word (SO_PEERCRED), 1 to 16 of them; default [0].
	AllowedUIDs []uint32 `yaml:"allowedUIDs"`
}

// Health is the HTTP listener of /metrics, /livez and /readyz.
type Health struct {
	// Address is HOST:PORT, default 127.0.0.1:8080; "" switches it off. It must
	// be loopback: key IDs are no secret, but no stranger's business either.
	Address string `yaml:"address"`

	// AllowRemote permits an Address that is not loopback.
	AllowRemote bool `yaml:"allowRemote"`
}

// Audit is the log of each Encrypt and Decrypt, one JSON object a line.
type Audit struct {
	// Path is an absolute path; the file is appended to, and opened again on SIGHUP.
	Path string `yaml:"path"`

	// Required refuses an operation whose line cannot be written, and serve does
	// not start where the log cannot be opened. Default false.
	Required bool `yaml:"required"`
}

// Log is the daemon's own log, on stderr.
type Log struct {
	// Format is json (default) or text.
	Format string `yaml:"format"`

	// Level is debug, info (default), warn or error.
	Level string `yaml:"level"`
}

// Default returns the defaults. It lacks what only the operator knows: cluster,
// kek.uri and socket.path.
func Default() Config {
	return Config{
		APIVersion: APIVersion,
		Lease:      Duration(12 * time.Hour),
		Renew:      Duration(5 * time.Minute),
		MaxUses:    1 << 24,
		CacheSize:  4096,
		Timeouts:   Timeouts{Attempt: Duration(time.Second), Call: Duration(2500 * time.Millisecond)},
		Socket:     Socket{Mode: 0o600, UID: -1, GID: -1, AllowedUIDs: []uint32{0}},
		Health:     Health{Address: "127.0.0.1:8080"},
		Log:        Log{Format: "json", Level: "info"},
	}
}

// KEKs returns kek and previous with the path of each.
func (c Config) KEKs() []Named {
	out := []Named{{"kek", c.KEK}}
	for i, k := range c.Previous {
		out = append(out, Named{fmt.Sprintf("previous[%d]", i), k})
	}
	return out
}

// Named is a KEK with the path of its field.
type Named struct {
	Path string
	KEK
}

// Duration is a time.Duration in Go's spelling: "90s", "12h". A bare 0 is
// allowed, another number without a unit is not.
type Duration time.Duration

// UnmarshalText reads a duration.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil {
		return fmt.Errorf("%q is not a duration such as 500ms, 5m or 12h", b)
	}
	*d = Duration(v)
	return nil
}

// String returns Go's spelling without units of zero: "12h", not "12h0m0s".
func (d Duration) String() string {
	s := time.Duration(d).String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// Mode is a file mode in octal.
type Mode fs.FileMode

// UnmarshalText reads octal digits, quoted or not.
func (m *Mode) UnmarshalText(b []byte) error {
	v, err := strconv.ParseUint(string(b), 8, 9)
	if err != nil {
		return fmt.Errorf("%q is not a file mode in octal, such as \"0600\"", b)
	}
	*m = Mode(v)
	return nil
}

// String returns four octal digits.
func (m Mode) String() string { return fmt.Sprintf("%04o", uint32(m)) }

// Package kek holds what every home of a key encryption key (KEK) has in
// common: the [Provider] interface, the errors it answers with, and decorators
// that add a timeout, retries and metrics to any provider.
//
// It knows no cloud and links no SDK. A home is a package of its own below this
// one (kek/awskms, kek/tinkkeyset, …) and the only place that imports its SDK.
package kek

import (
	"context"
	"time"
)

// KeyRef names one version of one KEK.
type KeyRef struct {
	// ID is the key that the operator configured, resolved: an AWS key ARN and
	// never an alias, a Cloud KMS resource name, a keyset's absolute path. It
	// holds no secret: it is stored in clear with every record.
	ID string

	// Version is the home's own name for the version, e.g. a key material ID or
	// a version number. It is empty where a version is not known yet.
	Version string
}

// String returns "ID@Version", or ID alone where no version is known.
func (r KeyRef) String() string {
	if r.Version == "" {
		return r.ID
	}
	return r.ID + "@" + r.Version
}

// Wrapped is a key that was wrapped by the version that Key really names.
type Wrapped struct {
	Key        KeyRef
	Ciphertext []byte
}

// Provider is one home of one KEK.
//
// Methods may be called concurrently, honour ctx, and neither modify nor keep
// the slices that they are given. They do not retry, log or count: decorators do
// ([Retry], [Timeout], [Metrics]). Every error that they return is an [*Error],
// and it never holds key bytes or a URL with credentials.
type Provider interface {
	// Current asks the home, never memory, which version writes use now. A key
	// that is disabled or pending deletion has none: the error is KeyDisabled.
	Current(ctx context.Context) (KeyRef, error)

	// Wrap encrypts a key of 1 to 64 bytes under the current version and reports
	// the version that was really used, which may differ from an earlier Current
	// where the home is eventually consistent.
	Wrap(ctx context.Context, plaintext []byte) (Wrapped, error)

	// Unwrap decrypts what Wrap returned, under its version, current or not. It
	// refuses a w.Key.ID that is not the KEK of this provider with Invalid, so
	// that no other key is ever asked. w.Key.Version may be cut to a prefix
	// where the home's versions are long. The caller owns the result.
	Unwrap(ctx context.Context, w Wrapped) ([]byte, error)

	// Close releases connections. It may be called more than once; calls after
	// it may fail.
	Close() error
}

// MaxPlaintext is the largest key in bytes that Wrap must accept.
const MaxPlaintext = 64

// State is what a home says of its key.
type State string

// The states of a key, in the words of the homes.
const (
	StateUnknown         State = ""
	StateEnabled         State = "enabled"
	StateDisabled        State = "disabled"
	StatePendingDeletion State = "pending_deletion"
)

// Facts is what a home tells of its key beyond the current version. A zero
// field was not told.
type Facts struct {
	Key            KeyRef
	State          State
	Created        time.Time // of the key
	VersionCreated time.Time // of the current version
	DeletionDate   time.Time // when a key that is pending deletion is gone
	Rotation       string    // the home's rotation setting in words: "every 365 days", "off"
	Notes          []string  // what an operator should know, each a sentence
}

// Informer is a provider that keeps what its last Current was told, whether it
// succeeded or found the key disabled. Facts does not ask the home.
type Informer interface{ Facts() Facts }

// Identifier is a provider that can tell as whom it speaks to its home (an
// AWS principal's ARN, say). Identity asks the home.
type Identifier interface {
	Identity(ctx context.Context) (string, error)
}

// As finds the first provider in a chain of decorators that is a T.
func As[T any](p Provider) (T, bool) {
	for p != nil {
		if t, ok := p.(T); ok {
			return t, true
		}
		d, ok := p.(interface{ Decorated() Provider })
		if !ok {
			break
		}
		p = d.Decorated()
	}
	var none T
	return none, false
}

// decorator is embedded by this package's decorators: it passes every method on
// and lets [As] see through it.
type decorator struct{ Provider }

func (d decorator) Decorated() Provider { return d.Provider }

package kek

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Kind says what an error means to the caller. It is an error itself, so that
// errors.Is(err, kek.Denied) reads as a sentence. Callers ask for the Kind and
// never look at an error's text.
type Kind int

// The kinds. Denied, KeyNotFound and KeyDisabled are the KMS's word: a reply
// that says no. Unavailable, Throttled and Unauthenticated are outages: no reply
// about the key was had. The others say that this one request was bad.
const (
	// Unknown is an answer that the provider's table does not have.
	Unknown Kind = iota
	// Unavailable is no answer: network, timeout, 5xx.
	Unavailable
	// Throttled is a request refused for its rate; Error.RetryAfter may say when to try again.
	Throttled
	// Unauthenticated is missing, ended or wrong credentials of ours: not a word about the key.
	Unauthenticated
	// Denied is a home that knows us and forbids the operation.
	Denied
	// KeyNotFound is a key or version that does not exist.
	KeyNotFound
	// KeyDisabled is a key or version that exists and may not be used: disabled, pending deletion.
	KeyDisabled
	// Corrupt is a ciphertext that does not authenticate: damaged, foreign, or of another binding.
	Corrupt
	// Invalid is a request that could never succeed: another key's ID, a key of the wrong type, a size.
	Invalid
)

var kindNames = [...]string{
	Unknown:         "unknown",
	Unavailable:     "unavailable",
	Throttled:       "throttled",
	Unauthenticated: "unauthenticated",
	Denied:          "denied",
	KeyNotFound:     "key not found",
	KeyDisabled:     "key disabled",
	Corrupt:         "corrupt",
	Invalid:         "invalid",
}

// String returns the kind in lower-case words.
func (k Kind) String() string {
	if k < 0 || int(k) >= len(kindNames) {
		return fmt.Sprintf("kind %d", int(k))
	}
	return kindNames[k]
}

// Error makes a Kind an error.
func (k Kind) Error() string { return k.String() }

// Temporary reports whether the same request may succeed soon: Unavailable and Throttled.
func (k Kind) Temporary() bool { return k == Unavailable || k == Throttled }

// Word reports whether k is the KMS's word on the key: a reply that says no.
func (k Kind) Word() bool { return k == Denied || k == KeyNotFound || k == KeyDisabled }

// Op is an operation of a Provider, as errors and metrics name it.
type Op string

// The operations.
const (
	OpCurrent  Op = "current"
	OpWrap     Op = "wrap"
	OpUnwrap   Op = "unwrap"
	OpIdentity Op = "identity"
)

// Error is what every Provider method returns when it fails.
type Error struct {
	Op   Op
	Key  KeyRef
	Kind Kind

	// Permission is the name of the permission that a Denied operation needs,
	// where the home has such names, e.g. "kms:DescribeKey".
	Permission string

	// RetryAfter is how long a Throttled home asks us to wait, 0 if it does not say.
	RetryAfter time.Duration

	// Err is the cause. It must not hold key bytes or credentials.
	Err error
}

// Error names the operation, the key, what the error means and its cause.
func (e *Error) Error() string {
	s := string(e.Op)
	if e.Key.ID != "" {
		s += " with " + e.Key.String()
	}
	s += ": " + e.Kind.String()
	if e.Permission != "" {
		s += " (needs " + e.Permission + ")"
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns the kind and the cause, for errors.Is and errors.As.
func (e *Error) Unwrap() []error {
	if e.Err == nil {
		return []error{e.Kind}
	}
	return []error{e.Kind, e.Err}
}

// KindOf returns the Kind of err: that of the first [*Error] or Kind in its
// tree, Unavailable for a context that ended, else Unknown.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	var k Kind
	if errors.As(err, &k) {
		return k
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return Unavailable
	}
	return Unknown
}

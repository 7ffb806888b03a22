package tinkkeyset

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	"github.com/kube-kek/kube-kek/kek"
)

// cause is why an operation failed and what that means, before the operation is known.
type cause struct {
	kind kek.Kind
	err  error
}

func (c *cause) Error() string   { return c.err.Error() }
func (c *cause) Unwrap() []error { return []error{c.kind, c.err} }

func because(kind kek.Kind, format string, args ...any) error {
	return &cause{kind, fmt.Errorf(format, args...)}
}

// operationError makes err the error of an operation on a key.
func operationError(op kek.Op, key kek.KeyRef, err error) error {
	kind := kek.KindOf(err)
	if kind == kek.Unknown {
		kind = kindOfFileError(err)
	}
	return &kek.Error{Op: op, Key: key, Kind: kind, Err: err}
}

// fileError adds to the system's word on a file what to do about it.
func fileError(path string, err error) error {
	switch kind := kindOfFileError(err); kind {
	case kek.KeyNotFound:
		return because(kind, "no such file: restore the keyset from a backup, or on a first run make one: kube-kek keyset create %s", path)
	case kek.Unauthenticated:
		return because(kind, "this process may not read it: %w", bare(err))
	default:
		return because(kind, "reading: %w", bare(err))
	}
}

// kindOfFileError is the table from the system's errors to Kinds.
func kindOfFileError(err error) kek.Kind {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		return kek.KeyNotFound
	case errors.Is(err, fs.ErrPermission):
		return kek.Unauthenticated
	case errors.Is(err, syscall.ELOOP), errors.Is(err, fs.ErrExist):
		return kek.Invalid
	default:
		return kek.Unavailable
	}
}

// bare takes the path off an error, which the key's name says already.
func bare(err error) error {
	var pathError *fs.PathError
	if errors.As(err, &pathError) {
		return pathError.Err
	}
	return err
}

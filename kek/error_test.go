package kek_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/kube-kek/kube-kek/kek"
)

var kinds = []kek.Kind{
	kek.Unknown, kek.Unavailable, kek.Throttled, kek.Unauthenticated, kek.Denied,
	kek.KeyNotFound, kek.KeyDisabled, kek.Corrupt, kek.Invalid,
}

func TestAnErrorIsItsKindAndItsCauseAndNoOtherKind(t *testing.T) {
	for _, kind := range kinds {
		for name, err := range map[string]error{
			"with a cause":    &kek.Error{Op: kek.OpWrap, Kind: kind, Err: io.EOF},
			"wrapped":         fmt.Errorf("sealing: %w", &kek.Error{Op: kek.OpWrap, Kind: kind, Err: io.EOF}),
			"joined":          errors.Join(io.EOF, &kek.Error{Op: kek.OpWrap, Kind: kind}),
			"a kind and more": fmt.Errorf("%w: %w", kind, io.EOF),
		} {
			for _, other := range kinds {
				if got, want := errors.Is(err, other), other == kind; got != want {
					t.Errorf("%v, %s: errors.Is(err, kek %v) = %v, want %v", kind, name, other, got, want)
				}
			}
			if !errors.Is(err, io.EOF) {
				t.Errorf("%v, %s: the cause is lost", kind, name)
			}
			if got := kek.KindOf(err); got != kind {
				t.Errorf("%v, %s: KindOf = %v", kind, name, got)
			}
		}
		if err := (&kek.Error{Kind: kind}); kek.KindOf(err) != kind || !errors.Is(err, kind) {
			t.Errorf("%v without a cause is not its kind", kind)
		}
	}
}

func TestKindOf(t *testing.T) {
	denied := &kek.Error{Kind: kek.Denied}
	for name, test := range map[string]struct {
		err  error
		want kek.Kind
	}{
		"no error":                       {nil, kek.Unknown},
		"an error of others":             {io.EOF, kek.Unknown},
		"a bare kind":                    {kek.Corrupt, kek.Corrupt},
		"a deadline":                     {context.DeadlineExceeded, kek.Unavailable},
		"a cancelled context, wrapped":   {fmt.Errorf("asking: %w", context.Canceled), kek.Unavailable},
		"an Error before its cause":      {&kek.Error{Kind: kek.Invalid, Err: denied}, kek.Invalid},
		"an Error before a context's":    {&kek.Error{Kind: kek.Denied, Err: context.Canceled}, kek.Denied},
		"an Error before a bare kind":    {errors.Join(kek.Throttled, denied), kek.Denied},
		"an Error that says Unknown":     {&kek.Error{Err: context.Canceled}, kek.Unknown},
		"the first of two joined Errors": {errors.Join(denied, &kek.Error{Kind: kek.Corrupt}), kek.Denied},
	} {
		if got := kek.KindOf(test.err); got != test.want {
			t.Errorf("KindOf %s = %v, want %v", name, got, test.want)
		}
	}
}

func TestWhatAKindMeans(t *testing.T) {
	for _, test := range []struct {
		kind            kek.Kind
		text            string
		temporary, word bool
	}{
		{kek.Unknown, "unknown", false, false},
		{kek.Unavailable, "unavailable", true, false},
		{kek.Throttled, "throttled", true, false},
		{kek.Unauthenticated, "unauthenticated", false, false},
		{kek.Denied, "denied", false, true},
		{kek.KeyNotFound, "key not found", false, true},
		{kek.KeyDisabled, "key disabled", false, true},
		{kek.Corrupt, "corrupt", false, false},
		{kek.Invalid, "invalid", false, false},
		{kek.Invalid + 1, "kind 9", false, false},
		{-1, "kind -1", false, false},
	} {
		if got := test.kind.String(); got != test.text || test.kind.Error() != test.text {
			t.Errorf("kind %d is %q, want %q", int(test.kind), got, test.text)
		}
		if test.kind.Temporary() != test.temporary || test.kind.Word() != test.word {
			t.Errorf("%v: temporary %v, word %v; want %v, %v", test.kind, test.kind.Temporary(), test.kind.Word(), test.temporary, test.word)
		}
	}
}

func TestAnErrorsTextTellsWhatIsKnown(t *testing.T) {
	for _, test := range []struct {
		err  kek.Error
		want string
	}{
		{kek.Error{Op: kek.OpCurrent, Kind: kek.Unavailable}, "current: unavailable"},
		{kek.Error{Op: kek.OpWrap, Key: kek.KeyRef{ID: "arn:key"}, Kind: kek.Throttled, RetryAfter: time.Second}, "wrap with arn:key: throttled"},
		{kek.Error{Op: kek.OpUnwrap, Key: kek.KeyRef{ID: "arn:key", Version: "7"}, Kind: kek.Corrupt, Err: io.ErrUnexpectedEOF}, "unwrap with arn:key@7: corrupt: unexpected EOF"},
		{kek.Error{Op: kek.OpCurrent, Key: kek.KeyRef{ID: "arn:key"}, Kind: kek.Denied, Permission: "kms:DescribeKey", Err: errors.New("403")}, "current with arn:key: denied (needs kms:DescribeKey): 403"},
	} {
		if got := test.err.Error(); got != test.want {
			t.Errorf("got  %q\nwant %q", got, test.want)
		}
	}
}

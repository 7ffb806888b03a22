package kektest

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kube-kek/kube-kek/kek"
)

// patience is how long a call may take to notice that its context has ended.
// It is generous, for machines under load; a call that does not notice never ends.
const patience = 10 * time.Second

// panicked is a panic of a provider, which the contract has no place for.
type panicked struct{ value any }

func (p *panicked) Error() string { return fmt.Sprintf("panic: %v", p.value) }

func guard(f func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = &panicked{v}
		}
	}()
	return f()
}

// call runs every operation and returns the error of each. They run at the same
// time: below Retry each takes its pauses, and so they take them together.
func call(ctx context.Context, p kek.Provider, key []byte, w kek.Wrapped) map[kek.Op]error {
	operations := map[kek.Op]func() error{
		kek.OpCurrent: func() error { _, err := p.Current(ctx); return err },
		kek.OpWrap:    func() error { _, err := p.Wrap(ctx, bytes.Clone(key)); return err },
		kek.OpUnwrap: func() error {
			_, err := p.Unwrap(ctx, kek.Wrapped{Key: w.Key, Ciphertext: bytes.Clone(w.Ciphertext)})
			return err
		},
	}
	var mu sync.Mutex
	errs := map[kek.Op]error{}
	var wg sync.WaitGroup
	for op, run := range operations {
		wg.Go(func() {
			err := guard(run)
			mu.Lock()
			defer mu.Unlock()
			errs[op] = err
		})
	}
	wg.Wait()
	return errs
}

func faulted(t testing.TB, h Harness, field string) {
	if h.lacks(t, field) {
		return
	}
	for _, f := range h.faults() {
		if f.field != field {
			continue
		}
		p := h.New(t)
		key := newKey(32)
		w := wrap(t, p, key)
		end := sync.OnceFunc(f.begin(t))
		defer end()
		var wg sync.WaitGroup
		for who, p := range map[string]kek.Provider{"a provider made before": p, "a provider made under it": h.New(t)} {
			wg.Go(func() {
				for op, err := range call(t.Context(), p, key, w) {
					if err == nil || kek.KindOf(err) != f.kind {
						t.Errorf("%s with %s, %s: %v, want %v", op, f.what, who, err, f.kind)
					}
				}
			})
		}
		wg.Wait()
		end()
		for op, err := range call(t.Context(), p, key, w) {
			if err != nil {
				t.Errorf("%s once it was over: %v", op, err)
			}
		}
	}
}

func ended(t testing.TB, h Harness) {
	p := h.New(t)
	key := newKey(32)
	w := wrap(t, p, key)

	over, cancel := context.WithCancel(t.Context())
	cancel()
	unavailable(t, "a cancelled context", func() map[kek.Op]error { return call(over, p, key, w) })

	if h.lacks(t, "Hang") {
		return
	}
	defer h.Hang(t)()
	for what, cause := range map[string]func() (context.Context, context.CancelFunc){
		"a cancelled caller before a home that hangs": func() (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(20*time.Millisecond, cancel)
			return ctx, cancel
		},
		"a deadline before a home that hangs": func() (context.Context, context.CancelFunc) {
			return context.WithTimeout(t.Context(), 20*time.Millisecond)
		},
	} {
		ctx, cancel := cause()
		unavailable(t, what, func() map[kek.Op]error { return call(ctx, p, key, w) })
		cancel()
	}
}

// unavailable checks that calls end, and end with Unavailable.
func unavailable(t testing.TB, what string, calls func() map[kek.Op]error) {
	t.Helper()
	done := make(chan map[kek.Op]error, 1)
	go func() { done <- calls() }()
	select {
	case errs := <-done:
		for op, err := range errs {
			if err == nil || kek.KindOf(err) != kek.Unavailable {
				t.Errorf("%s with %s: %v, want %v", op, what, err, kek.Unavailable)
			}
		}
	case <-time.After(patience):
		t.Errorf("calls with %s have not returned after %v", what, patience)
	}
}

// failures provokes an error in every way that the home offers and hands them to see.
func failures(t testing.TB, h Harness, see func(what string, op kek.Op, err error, key []byte)) {
	p := h.New(t)
	key := newKey(32)
	w := wrap(t, p, key)

	damaged := kek.Wrapped{Key: w.Key, Ciphertext: bytes.Clone(w.Ciphertext)}
	damaged.Ciphertext[len(damaged.Ciphertext)-1] ^= 1
	_, err := unwrap(t, p, damaged)
	see("a damaged ciphertext", kek.OpUnwrap, err, key)

	_, err = unwrap(t, p, kek.Wrapped{Key: kek.KeyRef{ID: w.Key.ID + "x", Version: w.Key.Version}, Ciphertext: w.Ciphertext})
	see("another key's name", kek.OpUnwrap, err, key)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for op, err := range call(ctx, p, key, w) {
		see("a cancelled context", op, err, key)
	}
	for _, f := range h.faults() {
		if h.lacks(t, f.field) {
			continue
		}
		end := f.begin(t)
		for op, err := range call(t.Context(), p, key, w) {
			see(f.what, op, err, key)
		}
		end()
	}
}

func typed(t testing.TB, h Harness) {
	failures(t, h, func(what string, op kek.Op, err error, _ []byte) {
		switch e, ok := err.(*kek.Error); {
		case err == nil:
			// That it should have failed is another check's business.
		case !ok:
			t.Errorf("%s with %s: the error is a %T, want a *kek.Error", op, what, err)
		case e.Op != op:
			t.Errorf("%s with %s: the error's Op is %q", op, what, e.Op)
		}
	})
}

func silent(t testing.TB, h Harness) {
	failures(t, h, func(what string, op kek.Op, err error, key []byte) {
		if err == nil {
			return
		}
		for _, text := range []string{err.Error(), fmt.Sprintf("%+v", err), fmt.Sprintf("%#v", err)} {
			for encoding, secret := range spellings(key) {
				if strings.Contains(text, secret) {
					t.Errorf("%s with %s: the error's text holds the key in %s", op, what, encoding)
				}
			}
		}
	})
}

// spellings are the ways in which bytes get into a text. Of base64 the end is
// left out, which depends on what follows.
func spellings(key []byte) map[string]string {
	return map[string]string{
		"raw bytes":      string(key),
		"hex":            hex.EncodeToString(key),
		"HEX":            strings.ToUpper(hex.EncodeToString(key)),
		"base64":         base64.RawStdEncoding.EncodeToString(key[:len(key)/3*3]),
		"URL base64":     base64.RawURLEncoding.EncodeToString(key[:len(key)/3*3]),
		"quoted text":    strings.Trim(fmt.Sprintf("%q", key), `"`),
		"decimals":       strings.Trim(fmt.Sprint(key), "[]"),
		"Go's own bytes": strings.TrimSuffix(strings.TrimPrefix(fmt.Sprintf("%#v", key), "[]byte{"), "}"),
	}
}

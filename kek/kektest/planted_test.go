package kektest

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"github.com/kube-kek/kube-kek/kek"
)

// planted is a provider with one thing wrong.
type planted struct {
	*Provider
	current func(context.Context) (kek.KeyRef, error)
	wrap    func(context.Context, []byte) (kek.Wrapped, error)
	unwrap  func(context.Context, kek.Wrapped) ([]byte, error)
	facts   func() kek.Facts
	close   func() error
}

func (p *planted) Current(ctx context.Context) (kek.KeyRef, error)           { return p.current(ctx) }
func (p *planted) Wrap(ctx context.Context, key []byte) (kek.Wrapped, error) { return p.wrap(ctx, key) }
func (p *planted) Unwrap(ctx context.Context, w kek.Wrapped) ([]byte, error) { return p.unwrap(ctx, w) }
func (p *planted) Facts() kek.Facts                                          { return p.facts() }
func (p *planted) Close() error                                              { return p.close() }

// plant returns a func that puts a fault into a provider.
func plant(fault func(p *planted, f *Provider)) func(kek.Provider) kek.Provider {
	return func(inner kek.Provider) kek.Provider {
		f := inner.(*Provider)
		p := &planted{f, f.Current, f.Wrap, f.Unwrap, f.Facts, f.Close}
		fault(p, f)
		return p
	}
}

func TestEachPlantedFaultFailsTheCheckThatIsMeantForIt(t *testing.T) {
	// kindBecomes gives errors of one kind another one.
	kindBecomes := func(from, to kek.Kind) func(*planted, *Provider) {
		change := func(err error) error {
			if e, ok := err.(*kek.Error); ok && e.Kind == from {
				e.Kind = to
			}
			return err
		}
		return func(p *planted, f *Provider) {
			p.current = func(ctx context.Context) (kek.KeyRef, error) { r, err := f.Current(ctx); return r, change(err) }
			p.wrap = func(ctx context.Context, b []byte) (kek.Wrapped, error) {
				w, err := f.Wrap(ctx, b)
				return w, change(err)
			}
			p.unwrap = func(ctx context.Context, w kek.Wrapped) ([]byte, error) {
				b, err := f.Unwrap(ctx, w)
				return b, change(err)
			}
		}
	}
	type test struct {
		name  string
		fault func(p *planted, f *Provider)
		alter func(h *Harness) // where the fault lies between providers
		fails string
	}
	tests := []test{
		{
			name:  "no fault",
			fault: func(*planted, *Provider) {},
		},
		{
			name: "keys of over 32 bytes do not come back whole",
			fault: func(p *planted, f *Provider) {
				p.unwrap = func(ctx context.Context, w kek.Wrapped) ([]byte, error) {
					b, err := f.Unwrap(ctx, w)
					return b[:min(32, len(b))], err
				}
			},
			fails: "a key of 1, 16, 32 and 64 bytes comes back",
		},
		{
			name: "a key of no bytes is wrapped",
			fault: func(p *planted, f *Provider) {
				p.wrap = func(ctx context.Context, b []byte) (kek.Wrapped, error) {
					if len(b) == 0 {
						return kek.Wrapped{}, nil
					}
					return f.Wrap(ctx, b)
				}
			},
			fails: "a key of 0 bytes is Invalid",
		},
		{
			name: "Wrap is deterministic",
			fault: func(p *planted, f *Provider) {
				var mu sync.Mutex
				seen := map[string]kek.Wrapped{}
				p.wrap = func(ctx context.Context, b []byte) (kek.Wrapped, error) {
					mu.Lock()
					defer mu.Unlock()
					w, err := f.Wrap(ctx, b)
					if old, ok := seen[w.Key.Version+string(b)]; ok && err == nil {
						return old, nil
					}
					if err == nil {
						seen[w.Key.Version+string(b)] = w
					}
					return w, err
				}
			},
			fails: "two wraps of one key differ",
		},
		{
			name: "the last byte is not authenticated",
			fault: func(p *planted, f *Provider) {
				p.wrap = func(ctx context.Context, b []byte) (kek.Wrapped, error) {
					w, err := f.Wrap(ctx, b)
					w.Ciphertext = append(w.Ciphertext, 0)
					return w, err
				}
				p.unwrap = func(ctx context.Context, w kek.Wrapped) ([]byte, error) {
					w.Ciphertext = w.Ciphertext[:max(0, len(w.Ciphertext)-1)]
					return f.Unwrap(ctx, w)
				}
			},
			fails: "a damaged ciphertext is Corrupt or Invalid",
		},
		{
			name: "a truncated ciphertext is taken for an outage",
			fault: func(p *planted, f *Provider) {
				p.unwrap = func(ctx context.Context, w kek.Wrapped) ([]byte, error) {
					b, err := f.Unwrap(ctx, w)
					if e, ok := err.(*kek.Error); ok && e.Kind == kek.Corrupt && len(w.Ciphertext) < 10 {
						e.Kind = kek.Unavailable
					}
					return b, err
				}
			},
			fails: "a damaged ciphertext is Corrupt or Invalid",
		},
		{
			name: "an empty ciphertext panics",
			fault: func(p *planted, f *Provider) {
				p.unwrap = func(ctx context.Context, w kek.Wrapped) ([]byte, error) {
					_ = w.Ciphertext[0]
					return f.Unwrap(ctx, w)
				}
			},
			fails: "a damaged ciphertext is Corrupt or Invalid",
		},
		{
			name: "Wrap reports a wrong version",
			fault: func(p *planted, f *Provider) {
				p.wrap = func(ctx context.Context, b []byte) (kek.Wrapped, error) {
					w, err := f.Wrap(ctx, b)
					if err == nil {
						w.Key.Version = "9" + w.Key.Version[1:]
					}
					return w, err
				}
				p.unwrap = func(ctx context.Context, w kek.Wrapped) ([]byte, error) {
					w.Key.Version = strings.Replace(w.Key.Version, "9", "0", 1)
					return f.Unwrap(ctx, w)
				}
			},
			fails: "Current names what Wrap used",
		},
		{
			name: "versions hold an @",
			fault: func(p *planted, f *Provider) {
				p.current = func(ctx context.Context) (kek.KeyRef, error) {
					r, err := f.Current(ctx)
					r.Version += "@"
					return r, err
				}
				p.wrap = func(ctx context.Context, b []byte) (kek.Wrapped, error) {
					w, err := f.Wrap(ctx, b)
					w.Key.Version += "@"
					return w, err
				}
				p.unwrap = func(ctx context.Context, w kek.Wrapped) ([]byte, error) {
					w.Key.Version = strings.TrimSuffix(w.Key.Version, "@")
					return f.Unwrap(ctx, w)
				}
				p.facts = func() kek.Facts {
					facts := f.Facts()
					facts.Key.Version += "@"
					return facts
				}
			},
			fails: "the name of a key fits into a key ID",
		},
		{
			name: "Current answers from memory",
			fault: func(p *planted, f *Provider) {
				var mu sync.Mutex
				var first kek.KeyRef
				p.current = func(ctx context.Context) (kek.KeyRef, error) {
					mu.Lock()
					defer mu.Unlock()
					r, err := f.Current(ctx)
					if first == (kek.KeyRef{}) {
						first = r
					}
					if err != nil {
						return kek.KeyRef{}, err
					}
					return first, nil
				}
			},
			fails: "a rotation moves Current and old wraps open",
		},
		{
			name: "old versions do not open",
			fault: func(p *planted, f *Provider) {
				p.unwrap = func(ctx context.Context, w kek.Wrapped) ([]byte, error) {
					f.mu.Lock()
					current := f.versions[f.current].name
					f.mu.Unlock()
					if !strings.HasPrefix(current, w.Key.Version) {
						return nil, f.err(kek.OpUnwrap, version{}, kek.KeyNotFound, "not current")
					}
					return f.Unwrap(ctx, w)
				}
			},
			fails: "a rotation moves Current and old wraps open",
		},
		{
			name: "a cut version is not found",
			fault: func(p *planted, f *Provider) {
				p.unwrap = func(ctx context.Context, w kek.Wrapped) ([]byte, error) {
					if len(w.Key.Version) == 32 {
						return nil, f.err(kek.OpUnwrap, version{}, kek.KeyNotFound, "no such version")
					}
					return f.Unwrap(ctx, w)
				}
			},
			fails: "a version cut to 32 bytes opens",
		},
		{
			name:  "every KEK of the home has the same key",
			fault: func(*planted, *Provider) {},
			alter: func(h *Harness) {
				same := h.New
				h.Other = func(t testing.TB) kek.Provider {
					p := same(t).(*planted)
					f := p.Provider
					p.current = func(ctx context.Context) (kek.KeyRef, error) {
						r, err := f.Current(ctx)
						r.ID = "other"
						return r, err
					}
					p.unwrap = func(ctx context.Context, w kek.Wrapped) ([]byte, error) {
						w.Key.ID = f.id
						return f.Unwrap(ctx, w)
					}
					return p
				}
			},
			fails: "another KEK cannot unwrap",
		},
		{
			name: "the key's ID is not looked at",
			fault: func(p *planted, f *Provider) {
				p.unwrap = func(ctx context.Context, w kek.Wrapped) ([]byte, error) {
					w.Key.ID = f.id
					return f.Unwrap(ctx, w)
				}
			},
			fails: "a wrap that names another key is Invalid",
		},
		{
			name:  "the binding is ignored",
			fault: func(*planted, *Provider) {},
			alter: func(h *Harness) { h.Foreign = h.New },
			fails: "another cluster cannot unwrap",
		},
		{
			name: "the context is ignored",
			fault: func(p *planted, f *Provider) {
				p.wrap = func(ctx context.Context, b []byte) (kek.Wrapped, error) {
					return f.Wrap(context.WithoutCancel(ctx), b)
				}
			},
			fails: "a context that ends ends the call",
		},
		{
			name: "a cancelled context is a refusal",
			fault: func(p *planted, f *Provider) {
				p.unwrap = func(ctx context.Context, w kek.Wrapped) ([]byte, error) {
					b, err := f.Unwrap(ctx, w)
					if e, ok := err.(*kek.Error); ok && errors.Is(err, context.Canceled) {
						e.Kind = kek.Denied
					}
					return b, err
				}
			},
			fails: "a context that ends ends the call",
		},
		{
			name: "under load callers get wrong keys",
			fault: func(p *planted, f *Provider) {
				var wraps atomic.Int64
				p.wrap = func(ctx context.Context, b []byte) (kek.Wrapped, error) {
					wraps.Add(1)
					return f.Wrap(ctx, b)
				}
				p.unwrap = func(ctx context.Context, w kek.Wrapped) ([]byte, error) {
					b, err := f.Unwrap(ctx, w)
					if err == nil && wraps.Load() > 32 {
						b[0] ^= 1
					}
					return b, err
				}
			},
			fails: "64 callers at a time",
		},
		{
			name: "Wrap clears its argument",
			fault: func(p *planted, f *Provider) {
				p.wrap = func(ctx context.Context, b []byte) (kek.Wrapped, error) {
					defer clear(b)
					return f.Wrap(ctx, b)
				}
			},
			fails: "arguments are neither modified nor kept",
		},
		{
			name: "Unwrap writes behind its argument",
			fault: func(p *planted, f *Provider) {
				p.unwrap = func(ctx context.Context, w kek.Wrapped) ([]byte, error) {
					_ = append(w.Ciphertext, 1, 2, 3)
					return f.Unwrap(ctx, w)
				}
			},
			fails: "arguments are neither modified nor kept",
		},
		{
			name: "Unwrap keeps what it returns",
			fault: func(p *planted, f *Provider) {
				var mu sync.Mutex
				kept := map[string][]byte{}
				p.unwrap = func(ctx context.Context, w kek.Wrapped) ([]byte, error) {
					mu.Lock()
					defer mu.Unlock()
					b, err := f.Unwrap(ctx, w)
					if err != nil {
						return nil, err
					}
					if old, ok := kept[string(w.Ciphertext)]; ok {
						return old, nil
					}
					kept[string(w.Ciphertext)] = b
					return b, nil
				}
			},
			fails: "arguments are neither modified nor kept",
		},
		{
			name: "an error is not a kek.Error",
			fault: func(p *planted, f *Provider) {
				p.current = func(ctx context.Context) (kek.KeyRef, error) {
					r, err := f.Current(ctx)
					if err != nil {
						err = fmt.Errorf("asking: %w", err)
					}
					return r, err
				}
			},
			fails: "errors are a kek.Error with the operation",
		},
		{
			name: "an error names another operation",
			fault: func(p *planted, f *Provider) {
				p.wrap = func(ctx context.Context, b []byte) (kek.Wrapped, error) {
					w, err := f.Wrap(ctx, b)
					if e, ok := err.(*kek.Error); ok {
						e.Op = kek.OpUnwrap
					}
					return w, err
				}
			},
			fails: "errors are a kek.Error with the operation",
		},
		{
			name: "Facts are made up",
			fault: func(p *planted, f *Provider) {
				p.facts = func() kek.Facts { return kek.Facts{Key: f.Facts().Key, State: kek.StateEnabled} }
			},
			fails: "Facts tell of the last Current",
		},
		{
			name: "a second Close fails",
			fault: func(p *planted, f *Provider) {
				closed := false
				p.close = func() error {
					if closed {
						return errors.New("closed already")
					}
					closed = true
					return nil
				}
			},
			fails: "Close may be called twice",
		},
		{"disabled is Denied", kindBecomes(kek.KeyDisabled, kek.Denied), nil, "a disabled key is key disabled, and then it is over"},
		{"missing is Unknown", kindBecomes(kek.KeyNotFound, kek.Unknown), nil, "a missing key is key not found, and then it is over"},
		{"denied is an outage", kindBecomes(kek.Denied, kek.Unauthenticated), nil, "a denied caller is denied, and then it is over"},
		{"bad credentials are a refusal", kindBecomes(kek.Unauthenticated, kek.Denied), nil, "a caller without valid credentials is unauthenticated, and then it is over"},
		{"throttling is an outage", kindBecomes(kek.Throttled, kek.Unavailable), nil, "a home that throttles is throttled, and then it is over"},
		{
			name: "an outage does not end",
			fault: func(p *planted, f *Provider) {
				var mu sync.Mutex
				var down error
				p.current = func(ctx context.Context) (kek.KeyRef, error) {
					mu.Lock()
					defer mu.Unlock()
					if down != nil {
						return kek.KeyRef{}, down
					}
					r, err := f.Current(ctx)
					if kek.KindOf(err) == kek.Unavailable && ctx.Err() == nil {
						down = err
					}
					return r, err
				}
			},
			fails: "an unreachable home is unavailable, and then it is over",
		},
	}
	for _, spell := range []func([]byte) string{
		func(b []byte) string { return string(b) },
		func(b []byte) string { return fmt.Sprintf("%x", b) },
		func(b []byte) string { return fmt.Sprintf("%X", b) },
		func(b []byte) string { return fmt.Sprintf("%q", b) },
		func(b []byte) string { return fmt.Sprint(b) },
		func(b []byte) string { return fmt.Sprintf("%#v", b) },
	} {
		tests = append(tests, test{
			name: "an error holds the key",
			fault: func(p *planted, f *Provider) {
				p.wrap = func(ctx context.Context, b []byte) (kek.Wrapped, error) {
					w, err := f.Wrap(ctx, b)
					if e, ok := err.(*kek.Error); ok {
						e.Err = fmt.Errorf("wrapping %s", spell(b))
					}
					return w, err
				}
			},
			fails: "errors hold no plaintext",
		})
	}

	found := map[string]bool{}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			for _, form := range forms() {
				var want []string
				if test.fails != "" {
					want = []string{test.fails}
					found[test.fails] = true
				}
				got := failing(t, func() Harness {
					h := fakeHarness(New(Config{Binding: clusterA, VersionName: longVersion}), plant(test.fault))
					if test.alter != nil {
						test.alter(&h)
					}
					return h.decorated(form.decorate)
				})
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("%s: the checks that fail (-want +got):\n%s", form.name, diff)
				}
			}
		})
	}
	for _, c := range checks() {
		if !found[c.name] {
			t.Errorf("no planted fault fails the check %q", c.name)
		}
	}
}

// failing runs every check, each with a harness of its own and in a bubble of
// its own, so that pauses and patience cost nothing, and returns those that fail.
func failing(t *testing.T, h func() Harness) []string {
	var out []string
	for _, c := range checks() {
		synctest.Test(t, func(t *testing.T) {
			r := &recorder{TB: t}
			done := make(chan struct{})
			go func() {
				defer close(done)
				c.run(r, h())
			}()
			<-done
			if r.failed {
				out = append(out, c.name)
			}
		})
	}
	return out
}

// recorder keeps a check's verdict to itself.
type recorder struct {
	testing.TB
	mu     sync.Mutex
	failed bool
}

func (r *recorder) Logf(string, ...any) {}

func (r *recorder) Errorf(string, ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failed = true
}

func (r *recorder) Fatalf(format string, args ...any) {
	r.Errorf(format, args...)
	runtime.Goexit()
}

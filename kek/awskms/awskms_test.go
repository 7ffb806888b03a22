package awskms_test

import (
	"context"
	"errors"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/kube-kek/kube-kek/kek"
	"github.com/kube-kek/kube-kek/kek/awskms"
	"github.com/kube-kek/kube-kek/kek/awskms/awskmstest"
	"github.com/kube-kek/kube-kek/kek/kektest"
)

var (
	_ kek.Informer   = (*awskms.Provider)(nil)
	_ kek.Identifier = (*awskms.Provider)(nil)

	everything = []string{"kms:*"}
	cluster    = kek.NewBinding("prod-eu-1", nil)
)

// lab is a stand-in of AWS, one key in it, and a caller whose credentials are
// in the environment.
type lab struct {
	*awskmstest.Server
	http *httptest.Server
	key  string
	me   awskmstest.Principal
}

func newLab(t *testing.T) *lab { return newLabOf(t, awskmstest.New(awskmstest.Config{})) }

func newLabOf(t *testing.T, s *awskmstest.Server) *lab {
	l := &lab{Server: s, http: s.Start(), key: s.CreateKey()}
	t.Cleanup(l.http.Close)
	l.me = s.AddPrincipal(awskmstest.Principal{Allow: everything})
	l.useEnv(t, l.me)
	return l
}

// useEnv leaves nothing in the environment but p, so that the machine's own AWS
// configuration plays no part.
func (l *lab) useEnv(t *testing.T, p awskmstest.Principal) {
	for _, pair := range os.Environ() {
		if name, _, _ := strings.Cut(pair, "="); strings.HasPrefix(name, "AWS_") {
			t.Setenv(name, "")
			os.Unsetenv(name)
		}
	}
	t.Setenv("AWS_CONFIG_FILE", filepath.Join(t.TempDir(), "none"))
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", filepath.Join(t.TempDir(), "none"))
	for _, pair := range l.Env(l.http.URL, p) {
		name, value, _ := strings.Cut(pair, "=")
		t.Setenv(name, value)
	}
}

func (l *lab) provider(t testing.TB, c awskms.Config) *awskms.Provider {
	t.Helper()
	if c.Key == "" {
		c.Key = l.key
	}
	if c.Binding == nil {
		c.Binding = cluster
	}
	p, err := awskms.New(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func (l *lab) fault(f awskmstest.Fault) func(testing.TB) func() {
	return func(testing.TB) func() {
		l.SetFault(f)
		return func() { l.SetFault() }
	}
}

// as replaces what AWS knows of the caller, until the returned func is called.
func (l *lab) as(change func(*awskmstest.Principal)) func() {
	p := l.me
	change(&p)
	l.AddPrincipal(p)
	return func() { l.AddPrincipal(l.me) }
}

func TestProvider(t *testing.T) {
	l := newLab(t)
	other := l.CreateKey()
	kektest.Run(t, kektest.Harness{
		New:   func(t testing.TB) kek.Provider { return l.provider(t, awskms.Config{}) },
		Other: func(t testing.TB) kek.Provider { return l.provider(t, awskms.Config{Key: other}) },
		Foreign: func(t testing.TB) kek.Provider {
			return l.provider(t, awskms.Config{Binding: kek.NewBinding("other", nil)})
		},
		Rotate: func(testing.TB) { l.Rotate(l.key) },
		Disable: func(testing.TB) func() {
			l.Disable(l.key)
			return func() { l.Enable(l.key) }
		},
		Remove:   l.fault(awskmstest.Fault{Code: "NotFoundException", Message: "Key does not exist"}),
		Deny:     func(testing.TB) func() { return l.as(func(p *awskmstest.Principal) { p.Allow = nil }) },
		Expire:   func(testing.TB) func() { return l.as(func(p *awskmstest.Principal) { p.Expires = time.Now() }) },
		Throttle: l.fault(awskmstest.Fault{Code: "ThrottlingException"}),
		Cut:      l.fault(awskmstest.Fault{Drop: true}),
		Hang:     l.fault(awskmstest.Fault{Hang: true}),
	})
}

func TestAKeyMayBeNamedInFourWays(t *testing.T) {
	l := newLab(t)
	l.SetAlias("alias/prod/kek", l.key)
	_, id, _ := strings.Cut(l.key, "key/")
	arn, _, _ := strings.Cut(l.key, "key/")
	for _, name := range []string{l.key, id, "alias/prod/kek", arn + "alias/prod/kek"} {
		t.Run(name, func(t *testing.T) {
			w, err := l.provider(t, awskms.Config{Key: name}).Wrap(t.Context(), []byte("key"))
			if err != nil {
				t.Fatal(err)
			}
			// Each provider is asked once only, so that nothing is resolved before.
			p := l.provider(t, awskms.Config{Key: name})
			if got, err := p.Unwrap(t.Context(), w); err != nil || string(got) != "key" {
				t.Errorf("Unwrap: %q, %v", got, err)
			}
			ref, err := p.Current(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(w.Key, ref); diff != "" || ref.ID != l.key || len(ref.Version) != 64 {
				t.Errorf("Current differs from what Wrap used (-wrap +current), or is not %s:\n%s", l.key, diff)
			}
		})
	}
	for _, c := range l.Log() {
		if c.Action != "DescribeKey" && c.KeyID != l.key {
			t.Errorf("%s was not pinned to the key's ARN but to %q", c.Action, c.KeyID)
		}
	}
}

func TestBadConfigurationIsInvalidAndSaysWhy(t *testing.T) {
	l := newLab(t)
	t.Setenv("AWS_REGION", "")
	notPEM := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(notPEM, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		config awskms.Config
		want   string
	}{
		{"no key", awskms.Config{}, `key "" is neither`},
		{"a word", awskms.Config{Key: "my-key"}, `key "my-key" is neither`},
		{"an ARN of a bucket", awskms.Config{Key: "arn:aws:s3:::bucket"}, "is neither"},
		{"an ARN with a short account", awskms.Config{Key: strings.Replace(l.key, "111122223333", "1", 1)}, "is neither"},
		{"an ARN cut short", awskms.Config{Key: l.key[:len(l.key)-1]}, "is neither"},
		{"an ARN of an alias in a key", awskms.Config{Key: l.key[:strings.Index(l.key, "key/")] + "key/alias/kek"}, "is neither"},
		{"an ARN of a bare ID", awskms.Config{Key: strings.Replace(l.key, "key/", "", 1)}, "is neither"},
		{"an ARN without a region", awskms.Config{Key: strings.Replace(l.key, "eu-west-1", "", 1)}, "is neither"},
		{"a key/ID", awskms.Config{Key: l.key[strings.Index(l.key, "key/"):]}, "is neither"},
		{"an ID with a letter too high", awskms.Config{Key: "g0000000-0000-4000-8000-000000000000"}, "is neither"},
		{"an ID with a dash too many", awskms.Config{Key: "00000000-0000-4000-8000-00000000000-"}, "is neither"},
		{"a multi-Region ID cut short", awskms.Config{Key: "mrk-0123456789abcdef0123456789abcde"}, "is neither"},
		{"an empty alias", awskms.Config{Key: "alias/"}, "is neither"},
		{"an alias with a space", awskms.Config{Key: "alias/my kek"}, "is neither"},
		{"an ARN and another region", awskms.Config{Key: l.key, Region: "us-east-1"}, `region "us-east-1" is not that of the key`},
		{"an alias without a region", awskms.Config{Key: "alias/kek"}, "AWS_REGION"},
		{"an external ID without a role", awskms.Config{Key: l.key, ExternalID: "x"}, "without a role"},
		{"an endpoint that is plain http", awskms.Config{Key: l.key, Endpoint: "http://kms.internal:8080"}, "must be https"},
		{"an endpoint with a password", awskms.Config{Key: l.key, Endpoint: "https://me:secret@kms.internal"}, "kms.internal holds credentials"},
		{"an endpoint that is no URL", awskms.Config{Key: l.key, Endpoint: "kms.internal"}, "not a URL"},
		{"a CA bundle that is not there", awskms.Config{Key: l.key, CABundle: notPEM + "x"}, "no such file"},
		{"a CA bundle that is not PEM", awskms.Config{Key: l.key, CABundle: notPEM}, "no PEM certificate"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := awskms.New(t.Context(), c.config)
			if kek.KindOf(err) != kek.Invalid || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "secret") {
				t.Errorf("got %v, want Invalid that says %q", err, c.want)
			}
		})
	}
	if n := l.Calls(""); n != 0 {
		t.Errorf("New made %d calls", n)
	}
}

func TestEveryFormOfKeyIsTaken(t *testing.T) {
	l := newLab(t)
	for _, key := range []string{
		l.key, "alias/Prod/kek_1-a", "mrk-0123456789abcdef0123456789abcdef", "0a0b0c0d-0000-4000-8000-000000000000",
		"arn:aws-us-gov:kms:us-gov-west-1:111122223333:key/mrk-0123456789abcdef0123456789abcdef",
		"arn:aws-cn:kms:cn-north-1:111122223333:alias/kek",
	} {
		if _, err := awskms.New(t.Context(), awskms.Config{Key: key}); err != nil {
			t.Errorf("%s: %v", key, err)
		}
	}
}

func TestAnAliasIsResolvedOnceAndWatched(t *testing.T) {
	l := newLab(t)
	ctx, other := t.Context(), l.CreateKey()
	l.SetAlias("alias/kek", other)
	l.Disable(other)
	p := l.provider(t, awskms.Config{Key: "alias/kek"})
	if _, err := p.Current(ctx); kek.KindOf(err) != kek.KeyDisabled {
		t.Fatalf("an alias of a disabled key: %v", err)
	}
	// Nothing was wrapped by that key yet, so the alias may still be mended.
	l.SetAlias("alias/kek", l.key)
	first, err := p.Current(ctx)
	if err != nil || first.ID != l.key {
		t.Fatalf("the first good Current: %v, %v", first, err)
	}
	keeps := func(what string, notes ...string) {
		t.Helper()
		ref, err := p.Current(ctx)
		if err != nil || ref != first {
			t.Errorf("%s: Current says %v, %v, want %v", what, ref, err, first)
		}
		if w, err := p.Wrap(ctx, []byte("key")); err != nil || w.Key != first {
			t.Errorf("%s: Wrap used %v, %v, want %v", what, w.Key, err, first)
		}
		got := strings.Join(p.Facts().Notes, " ")
		for _, note := range notes {
			if !strings.Contains(got, note) {
				t.Errorf("%s: the notes %q do not say %q", what, got, note)
			}
		}
		if len(notes) == 0 && strings.Contains(got, "alias/kek") {
			t.Errorf("%s: the notes are %q", what, got)
		}
	}
	keeps("the alias is as it was")
	l.SetAlias("alias/kek", other)
	keeps("the alias moved", "alias/kek now points to "+other, "goes on with "+l.key, "previous:")
	if _, err := p.Unwrap(ctx, kek.Wrapped{Key: kek.KeyRef{ID: other}, Ciphertext: []byte("x")}); kek.KindOf(err) != kek.Invalid {
		t.Errorf("what the alias's new key wrapped: %v", err)
	}
	l.SetAlias("alias/kek", l.key)
	keeps("the alias came back")
	l.SetAlias("alias/kek", other)
	l.Delete(other)
	keeps("the alias is gone", "alias/kek no longer leads to "+l.key, "key not found")
	l.SetFault(awskmstest.Fault{Code: "KMSInternalException"})
	if _, err := p.Current(ctx); kek.KindOf(err) != kek.Unavailable {
		t.Errorf("while KMS is down: %v", err)
	}
	l.SetFault()
	l.Disable(l.key)
	if _, err := p.Current(ctx); kek.KindOf(err) != kek.KeyDisabled {
		t.Errorf("the key itself is disabled: %v", err)
	}
}

func TestPermissionsThatAreMissingAreNamed(t *testing.T) {
	l := newLab(t)
	ctx := t.Context()
	p := l.provider(t, awskms.Config{})
	w, err := p.Wrap(ctx, []byte("key"))
	if err != nil {
		t.Fatal(err)
	}
	may := func(actions ...string) { l.as(func(p *awskmstest.Principal) { p.Allow = actions }) }
	denied := func(op kek.Op, permission string, call func() error) {
		t.Helper()
		var e *kek.Error
		if err := call(); !errors.As(err, &e) || e.Kind != kek.Denied || e.Permission != permission || e.Op != op || !strings.Contains(err.Error(), l.me.ARN) {
			t.Errorf("%s: got %v, want it to need %s", op, err, permission)
		}
	}
	wrap := func() error { _, err := p.Wrap(ctx, []byte("key")); return err }
	may()
	denied(kek.OpCurrent, "kms:DescribeKey", func() error { _, err := p.Current(ctx); return err })
	denied(kek.OpUnwrap, "kms:Decrypt", func() error { _, err := p.Unwrap(ctx, w); return err })
	denied(kek.OpWrap, "kms:Encrypt", wrap)
	may("kms:Encrypt")
	denied(kek.OpWrap, "kms:Decrypt", wrap)

	may("kms:DescribeKey")
	if _, err := p.Current(ctx); err != nil {
		t.Fatalf("Current with kms:DescribeKey alone: %v", err)
	}
	notes := strings.Join(p.Facts().Notes, " ")
	for _, permission := range []string{"kms:ListKeyRotations is denied", "kms:GetKeyRotationStatus is denied"} {
		if !strings.Contains(notes, permission) {
			t.Errorf("the notes %q do not say that %s", notes, permission)
		}
	}
}

func TestEveryAnswersRequestIDIsRecorded(t *testing.T) {
	l := newLab(t)
	var calls kek.Calls
	ctx := kek.WithCalls(t.Context(), &calls)
	p := l.provider(t, awskms.Config{})
	w, err := p.Wrap(ctx, []byte("key"))
	if err != nil {
		t.Fatal(err)
	}
	l.Disable(l.key)
	_, err = p.Unwrap(ctx, w)
	if last := calls.IDs()[len(calls.IDs())-1]; kek.KindOf(err) != kek.KeyDisabled || !strings.Contains(err.Error(), last) {
		t.Errorf("the error %v lacks the request ID %s", err, last)
	}
	l.SetFault(awskmstest.Fault{Status: 502, Body: []byte("<html>")})
	if _, err := p.Current(ctx); kek.KindOf(err) != kek.Unavailable {
		t.Errorf("a garbled answer: %v", err)
	}
	var want []string
	for _, c := range l.Log() {
		want = append(want, c.RequestID)
	}
	if diff := cmp.Diff(want, calls.IDs()); diff != "" || len(want) != 4 {
		t.Errorf("request IDs (-sent +recorded):\n%s", diff)
	}
}

// describe is the shortest way to an error.
func describe(ctx context.Context, p *awskms.Provider) error {
	_, err := p.Current(ctx)
	return err
}

func firstLine(err error) string {
	line, _, more := strings.Cut(fmt.Sprint(err), "\n")
	if more {
		line += " (and more lines)"
	}
	return line
}

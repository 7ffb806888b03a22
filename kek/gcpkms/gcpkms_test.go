package gcpkms_test

import (
	"context"
	"errors"
	"io"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cloud.google.com/go/kms/apiv1/kmspb"
	"github.com/google/go-cmp/cmp"
	"github.com/kube-kek/kube-kek/kek"
	"github.com/kube-kek/kube-kek/kek/gcpkms"
	"github.com/kube-kek/kube-kek/kek/gcpkms/gcpkmstest"
	"github.com/kube-kek/kube-kek/kek/kektest"
	"google.golang.org/grpc/codes"
)

var (
	_ kek.Informer   = (*gcpkms.Provider)(nil)
	_ kek.Identifier = (*gcpkms.Provider)(nil)

	cluster = kek.NewBinding("prod-eu-1", nil)
)

const me = "node@p.iam.gserviceaccount.com"

var mine = []string{"cloudkms.cryptoKeys.get", "cloudkms.cryptoKeyVersions.useToEncrypt", "cloudkms.cryptoKeyVersions.useToDecrypt"}

// lab is a stand-in of Google Cloud KMS, one key in it, and a machine whose
// metadata server tells of a service account that may use it.
type lab struct {
	*gcpkmstest.Server
	key string
	ca  string // a file
}

func newLab(t *testing.T) *lab {
	s, err := gcpkmstest.Start(gcpkmstest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	l := &lab{Server: s, key: s.CreateKey(), ca: writeFile(t, "ca.pem", s.CA())}
	l.allow(mine...)
	t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", "")
	machine := httptest.NewServer(s.Metadata(me))
	t.Cleanup(machine.Close)
	t.Setenv("GCE_METADATA_HOST", machine.Listener.Addr().String())
	return l
}

func (l *lab) allow(permissions ...string) {
	l.SetPrincipal(gcpkmstest.Principal{Name: me, Allow: permissions})
}

func (l *lab) provider(t testing.TB, change ...func(*gcpkms.Config)) *gcpkms.Provider {
	t.Helper()
	c := gcpkms.Config{Key: l.key, Binding: cluster, Endpoint: l.Address(), CABundle: l.ca}
	for _, f := range change {
		f(&c)
	}
	p, err := gcpkms.New(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func (l *lab) fault(f gcpkmstest.Fault) func(testing.TB) func() {
	return func(testing.TB) func() {
		l.SetFault(f)
		return func() { l.SetFault() }
	}
}

func (l *lab) as(p gcpkmstest.Principal) func(testing.TB) func() {
	return func(testing.TB) func() {
		l.SetPrincipal(p)
		return func() { l.allow(mine...) }
	}
}

func writeFile(t testing.TB, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// current is the shortest way to an error.
func current(ctx context.Context, p *gcpkms.Provider) error {
	_, err := p.Current(ctx)
	return err
}

func TestProvider(t *testing.T) {
	l := newLab(t)
	other := l.CreateKey()
	kektest.Run(t, kektest.Harness{
		New:   func(t testing.TB) kek.Provider { return l.provider(t) },
		Other: func(t testing.TB) kek.Provider { return l.provider(t, func(c *gcpkms.Config) { c.Key = other }) },
		Foreign: func(t testing.TB) kek.Provider {
			return l.provider(t, func(c *gcpkms.Config) { c.Binding = kek.NewBinding("other", nil) })
		},
		Rotate: func(testing.TB) { l.Rotate(l.key) },
		Disable: func(testing.TB) func() {
			l.Disable(l.key)
			return func() { l.Enable(l.key) }
		},
		Remove:   l.fault(gcpkmstest.Fault{Code: codes.NotFound, Message: "CryptoKey not found."}),
		Deny:     l.as(gcpkmstest.Principal{Name: me}),
		Expire:   l.as(gcpkmstest.Principal{Name: me, Allow: mine, Revoked: true}),
		Throttle: l.fault(gcpkmstest.Fault{Code: codes.ResourceExhausted, Message: "Quota exceeded.", RetryDelay: time.Millisecond}),
		Cut:      l.fault(gcpkmstest.Fault{Drop: true}),
		Hang:     l.fault(gcpkmstest.Fault{Hang: true}),
	})
}

func TestBadConfigurationIsInvalidAndSaysWhy(t *testing.T) {
	l := newLab(t)
	key := func(name string) func(*gcpkms.Config) { return func(c *gcpkms.Config) { c.Key = name } }
	endpoint := func(s string) func(*gcpkms.Config) { return func(c *gcpkms.Config) { c.Endpoint = s } }
	file := func(content string) func(*gcpkms.Config) {
		path := writeFile(t, "credentials.json", []byte(content))
		return func(c *gcpkms.Config) { c.CredentialsFile = path }
	}
	readable := writeFile(t, "key.json", l.KeyFile(me))
	if err := os.Chmod(readable, 0o644); err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("k", 63)
	for _, c := range []struct {
		name   string
		change func(*gcpkms.Config)
		want   string
	}{
		{"no key", key(""), `key "" is not of the form projects/P/`},
		{"a key ring", key("projects/p/locations/l/keyRings/r"), "is not of the form"},
		{"a version", key(l.key + "/cryptoKeyVersions/1"), "name the key alone, " + l.key},
		{"a space", key(l.key + " "), "is not of the form"},
		{"an @", key("projects/p/locations/l/keyRings/r/cryptoKeys/k@1"), "is not of the form"},
		{"a name that no key ID holds", key("projects/my-long-project-1234567890/locations/europe-west1/keyRings/" + long + "/cryptoKeys/" + long), "fit into a key ID"},
		{"an endpoint that is plain http", endpoint("http://kms.internal:8080"), "must be https"},
		{"an endpoint with a password", endpoint("https://me:secret@kms.internal"), "kms.internal holds credentials"},
		{"an endpoint with a path", endpoint("https://kms.internal/v1"), "not like HOST[:PORT]"},
		{"an endpoint that is nothing", endpoint("https://"), "not like HOST[:PORT]"},
		{"a CA bundle that is not there", func(c *gcpkms.Config) { c.CABundle += "x" }, "no such file"},
		{"a CA bundle that is not PEM", func(c *gcpkms.Config) { c.CABundle = readable }, "no PEM certificate"},
		{"credentials that are not there", func(c *gcpkms.Config) { c.CredentialsFile = l.ca + "x" }, "no such file"},
		{"credentials that are not JSON", file("secret"), "not JSON"},
		{"credentials of an unknown type", file(`{"type": "gdch"}`), `the type "gdch" is none of external_account`},
		{"a key file without a key", file(`{"type": "service_account", "private_key": "secret"}`), "could not parse key"},
		{"a key file that everyone may read", func(c *gcpkms.Config) { c.CredentialsFile = readable }, "readable by everyone (mode 0644): chmod 600"},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := gcpkms.Config{Key: l.key, Endpoint: l.Address(), CABundle: l.ca}
			c.change(&config)
			_, err := gcpkms.New(t.Context(), config)
			if kek.KindOf(err) != kek.Invalid || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "secret@") {
				t.Errorf("got %v, want Invalid that says %q", err, c.want)
			}
		})
	}
	if n := l.Calls(""); n != 0 {
		t.Errorf("New made %d calls", n)
	}
}

func TestEveryFormOfKeyAndEndpointIsTaken(t *testing.T) {
	l := newLab(t)
	for _, c := range []gcpkms.Config{
		{Key: l.key},
		{Key: "projects/example.com:my-project/locations/global/keyRings/R_1/cryptoKeys/k-2"},
		{Key: "projects/123456/locations/eur4/keyRings/r/cryptoKeys/k"},
		{Key: l.key, Endpoint: "cloudkms-psc.p.googleapis.com"},
		{Key: l.key, Endpoint: "https://kms.internal:8443/"},
		{Key: l.key, Endpoint: "[::1]:443"},
	} {
		p, err := gcpkms.New(t.Context(), c)
		if err != nil {
			t.Errorf("%+v: %v", c, err)
			continue
		}
		p.Close()
	}
}

func TestTheLongestNameMakesAKeyIDOf200Bytes(t *testing.T) {
	name := func(n int) string {
		const head = "projects/p/locations/europe-southwest1-and-then-some-more-of-it/keyRings/"
		ring, rest := strings.Repeat("r", 40), n-len(head)-40-len("/cryptoKeys/")
		return head + ring + "/cryptoKeys/" + strings.Repeat("k", rest)
	}
	const longest = 178 // gcpkms: and @4294967295~999 around it
	if _, err := gcpkms.New(t.Context(), gcpkms.Config{Key: name(longest)}); err != nil {
		t.Error(err)
	}
	if _, err := gcpkms.New(t.Context(), gcpkms.Config{Key: name(longest + 1)}); kek.KindOf(err) != kek.Invalid {
		t.Errorf("a byte more: %v", err)
	}
}

func TestWrapStaysWithTheVersionThatCurrentSaw(t *testing.T) {
	l := newLab(t)
	ctx, p := t.Context(), l.provider(t)
	wraps := func(what, version string) {
		t.Helper()
		w, err := p.Wrap(ctx, []byte("key"))
		if want := (kek.KeyRef{ID: l.key, Version: version}); err != nil || w.Key != want {
			t.Errorf("%s: Wrap used %v, %v, want %v", what, w.Key, err, want)
		}
	}
	sees := func(what, version string) {
		t.Helper()
		if ref, err := p.Current(ctx); err != nil || ref.Version != version {
			t.Errorf("%s: Current is %v, %v, want version %s", what, ref, err, version)
		}
	}
	wraps("at first", "1") // asks by itself
	l.SetLag(l.key, gcpkmstest.Lag{Encrypt: true})
	l.Rotate(l.key)
	sees("the servers that encrypt lag", "2")
	wraps("the servers that encrypt lag", "2")
	l.SetLag(l.key, gcpkmstest.Lag{GetCryptoKey: true})
	l.Rotate(l.key)
	sees("the servers that describe lag", "2")
	wraps("the servers that describe lag", "2")
	l.SetLag(l.key, gcpkmstest.Lag{})
	l.ResetCalls()
	wraps("all have caught up, and Current was not asked yet", "2")
	if n := l.Calls("GetCryptoKey"); n != 0 {
		t.Errorf("Wrap made %d reads", n)
	}
	sees("all have caught up", "3")
	wraps("all have caught up", "3")
	for _, c := range l.Log() {
		if c.Method == "Encrypt" && !strings.Contains(c.Name, "/cryptoKeyVersions/") {
			t.Errorf("Encrypt left the version to the key: %s", c.Name)
		}
	}

	l.Rotate(l.key)
	l.SetState(l.key, "3", kmspb.CryptoKeyVersion_DISABLED)
	wraps("the version that Current saw was disabled behind a new one", "4")
	wraps("the same again", "4")
}

func TestAVersionThatEncryptNamesIsBelieved(t *testing.T) {
	l := newLab(t)
	p := l.provider(t)
	l.SetFault(gcpkmstest.Fault{Methods: []string{"Encrypt"}, Damage: gcpkmstest.ForeignName})
	if _, err := p.Wrap(t.Context(), []byte("key")); kek.KindOf(err) != kek.Unavailable {
		t.Errorf("an answer of another key: %v", err)
	}
}

func TestUnwrapIsPinnedToTheKey(t *testing.T) {
	l := newLab(t)
	p := l.provider(t)
	w, err := p.Wrap(t.Context(), []byte("key"))
	if err != nil {
		t.Fatal(err)
	}
	w.Key.Version = "" // which the ciphertext knows
	l.ResetCalls()
	if got, err := p.Unwrap(t.Context(), w); err != nil || string(got) != "key" {
		t.Errorf("got %q, %v", got, err)
	}
	if diff := cmp.Diff([]gcpkmstest.Call{{Method: "Decrypt", Principal: me, Name: l.key}}, l.Log()); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
}

func TestDamageOnTheWayIsNoticedAndTemporary(t *testing.T) {
	l := newLab(t)
	p := l.provider(t)
	w, err := p.Wrap(t.Context(), []byte("key"))
	if err != nil {
		t.Fatal(err)
	}
	calls := map[string]func() error{
		"Encrypt": func() error { _, err := p.Wrap(t.Context(), []byte("key")); return err },
		"Decrypt": func() error { _, err := p.Unwrap(t.Context(), w); return err },
	}
	for _, c := range []struct {
		name   string
		method string
		damage gcpkmstest.Damage
		want   string
	}{
		{"a flipped ciphertext", "Encrypt", gcpkmstest.FlipData, "does not match its checksum"},
		{"a flipped checksum of a ciphertext", "Encrypt", gcpkmstest.FlipChecksum, "does not match its checksum"},
		{"a ciphertext without a checksum", "Encrypt", gcpkmstest.DropChecksum, "does not match its checksum"},
		{"a request whose checksums got lost", "Encrypt", gcpkmstest.Unverified, "did not get the checksums"},
		{"an empty answer to Encrypt", "Encrypt", gcpkmstest.EmptiedAnswer, "not one of KMS"},
		{"a flipped plaintext", "Decrypt", gcpkmstest.FlipData, "does not match its checksum"},
		{"a flipped checksum of a plaintext", "Decrypt", gcpkmstest.FlipChecksum, "does not match its checksum"},
		{"a plaintext without a checksum", "Decrypt", gcpkmstest.DropChecksum, "does not match its checksum"},
		{"an empty answer to Decrypt", "Decrypt", gcpkmstest.EmptiedAnswer, "does not match its checksum"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l.SetFault(gcpkmstest.Fault{Methods: []string{c.method}, Damage: c.damage, Times: 1})
			if err := calls[c.method](); kek.KindOf(err) != kek.Unavailable || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want Unavailable that says %q", err, c.want)
			}
			if err := calls[c.method](); err != nil {
				t.Errorf("the next call: %v", err)
			}
		})
	}
	for _, damage := range []gcpkmstest.Damage{gcpkmstest.ForeignName, gcpkmstest.EmptiedAnswer} {
		l.SetFault(gcpkmstest.Fault{Damage: damage})
		if err := current(t.Context(), p); kek.KindOf(err) != kek.Unavailable {
			t.Errorf("a key described by another's name: %v", err)
		}
	}
}

func TestPermissionsThatAreMissingAreNamed(t *testing.T) {
	l := newLab(t)
	ctx, p := t.Context(), l.provider(t)
	w, err := p.Wrap(ctx, []byte("key"))
	if err != nil {
		t.Fatal(err)
	}
	l.allow()
	for _, c := range []struct {
		op         kek.Op
		permission string
		call       func() error
	}{
		{kek.OpCurrent, "cloudkms.cryptoKeys.get", func() error { return current(ctx, p) }},
		{kek.OpWrap, "cloudkms.cryptoKeyVersions.useToEncrypt", func() error { _, err := p.Wrap(ctx, []byte("key")); return err }},
		{kek.OpUnwrap, "cloudkms.cryptoKeyVersions.useToDecrypt", func() error { _, err := p.Unwrap(ctx, w); return err }},
	} {
		var e *kek.Error
		if err := c.call(); !errors.As(err, &e) || e.Kind != kek.Denied || e.Permission != c.permission || e.Op != c.op || e.Key.ID != l.key {
			t.Errorf("%s: got %v, want it to need %s", c.op, err, c.permission)
		}
	}
	var e *kek.Error
	if _, err := l.provider(t).Wrap(ctx, []byte("key")); !errors.As(err, &e) || e.Op != kek.OpWrap || e.Permission != "cloudkms.cryptoKeys.get" {
		t.Errorf("Wrap before any Current: %v", err)
	}
}

func TestTheSDKLogsNothing(t *testing.T) {
	l := newLab(t)
	t.Setenv("GOOGLE_SDK_GO_LOGGING_LEVEL", "debug")
	t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", writeFile(t, "key.json", l.KeyFile(me)))
	stdout, stderr := os.Stdout, os.Stderr
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	os.Stdout, os.Stderr = w, w
	defer func() { os.Stdout, os.Stderr = stdout, stderr }()
	wrapped, err := l.provider(t).Wrap(t.Context(), []byte("key"))
	if err == nil {
		_, err = l.provider(t).Unwrap(t.Context(), wrapped)
	}
	w.Close()
	logged, _ := io.ReadAll(r)
	if err != nil || len(logged) != 0 {
		t.Errorf("%v; %d bytes were logged, of requests with keys and tokens", err, len(logged))
	}
}

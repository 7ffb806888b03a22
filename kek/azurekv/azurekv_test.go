package azurekv_test

import (
	"bytes"
	"crypto/rand"
	"encoding/pem"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/kube-kek/kube-kek/kek"
	"github.com/kube-kek/kube-kek/kek/azurekv"
	"github.com/kube-kek/kube-kek/kek/azurekv/azurekvtest"
	"github.com/kube-kek/kube-kek/kek/kektest"
)

// lab is a stand-in with one key, "kek", and a principal that may use it.
type lab struct {
	*azurekvtest.Server
	vault     *httptest.Server
	ca        string
	principal azurekvtest.Principal
	config    azurekv.Config
}

const vaultHost, hsmHost = "kube-kek.vault.azure.net", "kube-kek-hsm.managedhsm.azure.net"

// newLab gives the principal a client secret. The environment holds nothing of
// Azure's.
func newLab(t testing.TB, c azurekvtest.Config) *lab {
	t.Helper()
	clearEnv(t)
	s := azurekvtest.New(c)
	s.CreateKey("kek")
	srv := s.StartTLS()
	t.Cleanup(srv.Close)
	l := &lab{Server: s, vault: srv, ca: filepath.Join(t.TempDir(), "ca.pem")}
	write(t, l.ca, 0o644, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}))
	l.principal = s.AddPrincipal(azurekvtest.Principal{
		Secret: "not-a-real-secret", Allow: []string{"keys/get", "keys/wrapKey", "keys/unwrapKey", "keys/getrotationpolicy"},
	})
	secret := filepath.Join(t.TempDir(), "secret")
	write(t, secret, 0o600, []byte(l.principal.Secret+"\n"))
	l.config = azurekv.Config{
		Key: s.Host() + "/keys/kek", Endpoint: srv.URL, CABundle: l.ca, AuthorityHost: srv.URL,
		TenantID: s.Tenant(), ClientID: l.principal.ClientID, SecretFile: secret,
	}
	return l
}

func clearEnv(t testing.TB) {
	for _, e := range os.Environ() {
		if name, _, _ := strings.Cut(e, "="); strings.HasPrefix(name, "AZURE_") || strings.HasPrefix(name, "IDENTITY_") || strings.HasPrefix(name, "MSI_") {
			t.Setenv(name, "")
		}
	}
}

func write(t testing.TB, path string, mode os.FileMode, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil { // whatever the umask is
		t.Fatal(err)
	}
}

func (l *lab) provider(t testing.TB, change ...func(*azurekv.Config)) *azurekv.Provider {
	t.Helper()
	c := l.config
	for _, f := range change {
		f(&c)
	}
	p, err := azurekv.New(t.Context(), c)
	if err != nil {
		t.Fatalf("New: %v", err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func (l *lab) fault(f azurekvtest.Fault) func() {
	l.SetFault(f)
	return func() { l.SetFault() }
}

func TestProvider(t *testing.T) {
	for _, host := range []string{vaultHost, hsmHost} {
		t.Run(host, func(t *testing.T) {
			l := newLab(t, azurekvtest.Config{Host: host})
			l.CreateKey("other")
			kektest.Run(t, kektest.Harness{
				New: func(t testing.TB) kek.Provider { return l.provider(t) },
				Other: func(t testing.TB) kek.Provider {
					return l.provider(t, func(c *azurekv.Config) { c.Key = l.Host() + "/keys/other" })
				},
				Rotate: func(testing.TB) { l.Rotate("kek") },
				Disable: func(testing.TB) func() {
					l.SetEnabled("kek", "", false)
					return func() { l.SetEnabled("kek", "", true) }
				},
				Remove: func(testing.TB) func() {
					l.Remove("kek")
					return func() { l.Recover("kek") }
				},
				Deny: func(testing.TB) func() {
					p := l.principal
					p.Allow = nil
					l.AddPrincipal(p)
					return func() { l.AddPrincipal(l.principal) }
				},
				Expire: func(testing.TB) func() { return l.fault(azurekvtest.Unauthorized()) },
				Throttle: func(testing.TB) func() {
					return l.fault(azurekvtest.Fault{Status: 429, Code: "Throttled", Message: "Request was not processed because too many requests were received."})
				},
				Cut:   func(testing.TB) func() { return l.fault(azurekvtest.Fault{Drop: true}) },
				Hang:  func(testing.TB) func() { return l.fault(azurekvtest.Fault{Hang: true}) },
				Lacks: map[string]string{"Foreign": "RSA-OAEP-256 and A256KW take no additional data"},
			})
		})
	}
}

func newKey() []byte {
	b := make([]byte, 32)
	rand.Read(b)
	return b
}

func mustWrap(t testing.TB, p kek.Provider, key []byte) kek.Wrapped {
	t.Helper()
	w, err := p.Wrap(t.Context(), key)
	if err != nil {
		t.Fatalf("Wrap: %v", err)
	}
	return w
}

func TestWrapIsPinnedToTheVersionThatCurrentNamed(t *testing.T) {
	l := newLab(t, azurekvtest.Config{})
	p := l.provider(t)
	ref, err := p.Current(t.Context())
	if err != nil {
		t.Fatalf("Current: %v", err)
	}
	young := l.Rotate("kek")
	if w := mustWrap(t, p, newKey()); w.Key != ref {
		t.Errorf("Wrap used %v, Current had named %v", w.Key, ref)
	}
	if ref, err = p.Current(t.Context()); err != nil || ref.Version != young {
		t.Errorf("Current after the rotation: %v, %v; want version %s", ref, err, young)
	}
	if w := mustWrap(t, p, newKey()); w.Key.Version != young {
		t.Errorf("Wrap used %v, want version %s", w.Key, young)
	}
}

func TestRotationLeavesOldVersionsUnwrapping(t *testing.T) {
	l := newLab(t, azurekvtest.Config{})
	p := l.provider(t)
	key := newKey()
	var wraps []kek.Wrapped
	for range 3 {
		if _, err := p.Current(t.Context()); err != nil {
			t.Fatalf("Current: %v", err)
		}
		wraps = append(wraps, mustWrap(t, p, key))
		l.Rotate("kek")
	}
	// An expired version unwraps: the data must be recoverable.
	l.SetValidity("kek", wraps[1].Key.Version, time.Time{}, time.Now().Add(-time.Hour))
	// A disabled one does not, and the others do not mind.
	l.SetEnabled("kek", wraps[2].Key.Version, false)
	restarted := l.provider(t)
	for i, w := range wraps {
		got, err := restarted.Unwrap(t.Context(), w)
		switch {
		case i == 2 && kek.KindOf(err) != kek.KeyDisabled:
			t.Errorf("Unwrap by a disabled version: %v", err)
		case i < 2 && (err != nil || !bytes.Equal(got, key)):
			t.Errorf("Unwrap of version %d of 3: %v", i+1, err)
		}
	}
	for _, c := range l.Log() {
		if c.Action == "GetKey" && c.Version != "" {
			t.Errorf("a GetKey of version %s: Unwrap needs none", c.Version)
		}
	}
}

func TestWrapLeavesAVersionThatWasDisabledUnderIt(t *testing.T) {
	l := newLab(t, azurekvtest.Config{})
	p := l.provider(t)
	old := mustWrap(t, p, newKey()).Key.Version
	young := l.Rotate("kek")
	l.SetEnabled("kek", old, false)
	if _, err := p.Wrap(t.Context(), newKey()); kek.KindOf(err) != kek.KeyDisabled {
		t.Errorf("Wrap by the disabled version: %v", err)
	}
	if w := mustWrap(t, p, newKey()); w.Key.Version != young {
		t.Errorf("the next Wrap used %v, want version %s", w.Key, young)
	}
}

func TestAnOutageDoesNotCostWrapAnotherCall(t *testing.T) {
	l := newLab(t, azurekvtest.Config{})
	p := l.provider(t)
	mustWrap(t, p, newKey())
	heal := l.fault(azurekvtest.Fault{Drop: true})
	if _, err := p.Current(t.Context()); kek.KindOf(err) != kek.Unavailable {
		t.Errorf("Current: %v", err)
	}
	heal()
	l.ResetCalls()
	mustWrap(t, p, newKey())
	if n := l.Calls(""); n != 1 {
		t.Errorf("Wrap made %d calls, want 1", n)
	}
}

// TestWrapsOfAnHSM shows what A256KW wraps: nothing that leaks the key's length
// beyond 8 bytes, and nothing that two wraps share.
func TestWrapsOfAnHSM(t *testing.T) {
	l := newLab(t, azurekvtest.Config{Host: hsmHost})
	p := l.provider(t)
	for n := 1; n <= kek.MaxPlaintext; n++ {
		key := bytes.Repeat([]byte{0xFF}, n)
		w := mustWrap(t, p, key)
		if got, err := p.Unwrap(t.Context(), w); err != nil || !bytes.Equal(got, key) {
			t.Errorf("a key of %d bytes: %v", n, err)
		}
		if len(w.Ciphertext) > 96 || len(w.Ciphertext)%8 != 0 {
			t.Errorf("a key of %d bytes is wrapped in %d", n, len(w.Ciphertext))
		}
	}
}

func TestKeysThatCannotWrap(t *testing.T) {
	now := time.Now()
	for _, test := range []struct {
		name   string
		config azurekvtest.Config
		setup  func(*lab)
		kind   kek.Kind
		says   string
	}{
		{"an elliptic curve key", azurekvtest.Config{}, func(l *lab) { l.CreateKeyOf("kek", azurekvtest.EC, 256) }, kek.Invalid, `type "EC"`},
		{"RSA of 1024 bits", azurekvtest.Config{}, func(l *lab) { l.CreateKeyOf("kek", azurekvtest.RSA, 1024) }, kek.Invalid, "1024 bits"},
		{"a key to sign with", azurekvtest.Config{}, func(l *lab) { l.CreateKeyOf("kek", azurekvtest.RSA, 2048, "sign", "verify") }, kek.Invalid, "key_ops"},
		{"a key that wraps and does not unwrap", azurekvtest.Config{}, func(l *lab) { l.CreateKeyOf("kek", azurekvtest.RSA, 2048, "wrapKey") }, kek.Invalid, "unwrapKey"},
		{"a disabled version, which the vault refuses", azurekvtest.Config{}, func(l *lab) { l.SetEnabled("kek", "", false) }, kek.KeyDisabled, "disabled"},
		{"a disabled version, which the vault shows", azurekvtest.Config{ShowsDisabled: true}, func(l *lab) { l.SetEnabled("kek", "", false) }, kek.KeyDisabled, "enable it"},
		{"a version whose time has not come", azurekvtest.Config{}, func(l *lab) { l.SetValidity("kek", "", now.Add(time.Hour), time.Time{}) }, kek.KeyDisabled, "not valid before"},
		{"an expired version", azurekvtest.Config{}, func(l *lab) { l.SetValidity("kek", "", time.Time{}, now.Add(-time.Hour)) }, kek.KeyDisabled, "create a new version"},
		{"a key that was deleted", azurekvtest.Config{}, func(l *lab) { l.Delete("kek", now.Add(90*24*time.Hour)) }, kek.KeyDisabled, "recover it"},
		{"a key that never was", azurekvtest.Config{}, func(l *lab) { l.Remove("kek") }, kek.KeyNotFound, "not found"},
	} {
		t.Run(test.name, func(t *testing.T) {
			l := newLab(t, test.config)
			test.setup(l)
			p := l.provider(t)
			_, err := p.Current(t.Context())
			if kek.KindOf(err) != test.kind || !strings.Contains(err.Error(), test.says) {
				t.Errorf("Current: %v, want %v that says %q", err, test.kind, test.says)
			}
			if _, err := p.Wrap(t.Context(), newKey()); err == nil || kek.KindOf(err) != test.kind && !kek.KindOf(err).Word() {
				t.Errorf("Wrap: %v, want %v", err, test.kind)
			}
		})
	}
}

func TestFacts(t *testing.T) {
	l := newLab(t, azurekvtest.Config{})
	p := l.provider(t)
	if diff := cmp.Diff(kek.Facts{}, p.Facts()); diff != "" {
		t.Errorf("Facts before the first Current: %s", diff)
	}
	current := func() (kek.Facts, error) {
		_, err := p.Current(t.Context())
		return p.Facts(), err
	}
	f, err := current()
	if err != nil || f.State != kek.StateEnabled || f.Rotation != "off" || time.Since(f.VersionCreated) > time.Hour {
		t.Errorf("Facts: %+v, %v", f, err)
	}
	if len(f.Notes) != 1 || !strings.Contains(f.Notes[0], "client secret") {
		t.Errorf("Notes: %q, want one on the client secret", f.Notes)
	}

	exp := time.Now().Add(24 * time.Hour).UTC().Truncate(time.Second)
	l.SetRotation("kek", "P90D")
	l.SetPurgeProtection("kek", false)
	version := l.Rotate("kek")
	l.SetValidity("kek", version, time.Time{}, exp)
	l.SetPurgeProtection("kek", false)
	if f, err = current(); err != nil || f.Rotation != "every 90 days" || f.Key.Version != version {
		t.Errorf("Facts of a version that expires: %+v, %v", f, err)
	}
	for _, words := range []string{"Purge protection is off", exp.Format(time.RFC3339)} {
		if !slices.ContainsFunc(f.Notes, func(n string) bool { return strings.Contains(n, words) }) {
			t.Errorf("Notes: %q, want one with %q", f.Notes, words)
		}
	}
	if n := l.Calls("GetKeyRotationPolicy"); n != 2 {
		t.Errorf("the rotation policy was asked for %d times, want once a version", n)
	}

	purge := exp.Add(90 * 24 * time.Hour)
	l.Delete("kek", purge)
	if f, err = current(); kek.KindOf(err) != kek.KeyDisabled || f.State != kek.StatePendingDeletion || !f.DeletionDate.Equal(purge) {
		t.Errorf("Facts of a deleted key: %+v, %v", f, err)
	}
	defer l.fault(azurekvtest.Fault{Drop: true})()
	if f, err = current(); kek.KindOf(err) != kek.Unavailable || f.State != kek.StatePendingDeletion {
		t.Errorf("Facts in an outage: %+v, %v; want those of before", f, err)
	}
}

func TestRotationPolicyIsNotNeeded(t *testing.T) {
	l := newLab(t, azurekvtest.Config{})
	l.principal.Allow = []string{"keys/get"}
	l.AddPrincipal(l.principal)
	p := l.provider(t)
	for range 2 {
		if _, err := p.Current(t.Context()); err != nil {
			t.Fatalf("Current: %v", err)
		}
	}
	if f := p.Facts(); f.Rotation != "" || !slices.ContainsFunc(f.Notes, func(n string) bool { return strings.Contains(n, "keys/getrotationpolicy") }) {
		t.Errorf("Facts: %+v, want a note on keys/getrotationpolicy", f)
	}
	if n := l.Calls("GetKeyRotationPolicy"); n != 1 {
		t.Errorf("what is denied was asked for %d times, want once", n)
	}
}

func TestRequestIDsAreReported(t *testing.T) {
	l := newLab(t, azurekvtest.Config{})
	p := l.provider(t)
	var calls kek.Calls
	ctx := kek.WithCalls(t.Context(), &calls)
	if _, err := p.Current(ctx); err != nil {
		t.Fatalf("Current: %v", err)
	}
	if _, err := p.Unwrap(ctx, kek.Wrapped{Key: kek.KeyRef{ID: l.config.Key, Version: strings.Repeat("0", 32)}, Ciphertext: []byte("x")}); kek.KindOf(err) != kek.KeyNotFound {
		t.Errorf("Unwrap by a version that never was: %v", err)
	}
	var want []string
	for _, c := range l.Log() {
		if c.Action != azurekvtest.ActionToken && c.Action != azurekvtest.ActionDiscovery {
			want = append(want, c.RequestID)
		}
	}
	if diff := cmp.Diff(want, calls.IDs()); diff != "" {
		t.Errorf("request IDs: %s", diff)
	}
}

func TestUnwrapRefusesAVersionThatIsNone(t *testing.T) {
	l := newLab(t, azurekvtest.Config{})
	p := l.provider(t)
	w := mustWrap(t, p, newKey())
	before := l.Calls("")
	for _, version := range []string{"", "..", "../../secrets/x", w.Key.Version[:31], strings.ToUpper(w.Key.Version) + "Z"} {
		w.Key.Version = version
		if _, err := p.Unwrap(t.Context(), w); kek.KindOf(err) != kek.Invalid {
			t.Errorf("version %q: %v, want %v", version, err, kek.Invalid)
		}
	}
	if n := l.Calls("") - before; n != 0 {
		t.Errorf("the vault was asked %d times", n)
	}
}

package tinkkeyset

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/tink-crypto/tink-go/v2/keyset"
	tinkpb "github.com/tink-crypto/tink-go/v2/proto/tink_go_proto"

	"github.com/kube-kek/kube-kek/kek"
	"github.com/kube-kek/kube-kek/kek/kektest"
)

var cluster = kek.NewBinding("a", nil)

// create makes a keyset in a directory of the test.
func create(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "keyset.json")
	if _, err := Create(path); err != nil {
		t.Fatal(err)
	}
	return path
}

func provider(t testing.TB, path string, binding kek.Binding) *Provider {
	t.Helper()
	p, err := New(Config{Path: path, Binding: binding})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func rotate(t testing.TB, path string) kek.KeyRef {
	t.Helper()
	ref, err := Rotate(path)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// edit changes the keyset as an operator with an editor does, past Tink's rules.
func edit(t testing.TB, path string, change func(*tinkpb.Keyset)) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	ks, err := keyset.NewJSONReader(bytes.NewReader(data)).Read()
	if err != nil {
		t.Fatal(err)
	}
	change(ks)
	var out bytes.Buffer
	if err := keyset.NewJSONWriter(&out).Write(ks); err != nil {
		t.Fatal(err)
	}
	write(t, path, out.Bytes())
}

// write replaces the file at path.
func write(t testing.TB, path string, data []byte) {
	t.Helper()
	temp := path + ".edit"
	if err := os.WriteFile(temp, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(temp, path); err != nil {
		t.Fatal(err)
	}
}

func setStatus(status tinkpb.KeyStatusType, versions ...string) func(*tinkpb.Keyset) {
	return func(ks *tinkpb.Keyset) {
		for _, k := range ks.GetKey() {
			for _, v := range versions {
				if v == "all" || v == versionName(k.GetKeyId()) {
					k.Status = status
				}
			}
		}
	}
}

func TestConformance(t *testing.T) {
	path, other := create(t), create(t)
	kektest.Run(t, kektest.Harness{
		New:     func(t testing.TB) kek.Provider { return provider(t, path, cluster) },
		Other:   func(t testing.TB) kek.Provider { return provider(t, other, cluster) },
		Foreign: func(t testing.TB) kek.Provider { return provider(t, path, kek.NewBinding("b", nil)) },
		Rotate:  func(t testing.TB) { rotate(t, path) },
		Disable: func(t testing.TB) func() {
			edit(t, path, setStatus(tinkpb.KeyStatusType_DISABLED, "all"))
			return func() { edit(t, path, setStatus(tinkpb.KeyStatusType_ENABLED, "all")) }
		},
		Remove: func(t testing.TB) func() {
			move := func(from, to string) {
				if err := os.Rename(from, to); err != nil {
					t.Fatal(err)
				}
			}
			move(path, path+".away")
			return func() { move(path+".away", path) }
		},
		Lacks: map[string]string{
			"Deny":     "a file has no rights that are about the key alone: one that we may not read is Unauthenticated",
			"Expire":   "root may read every file, and tests may run as root; TestAFileThatMayNotBeRead gives root's rights up",
			"Throttle": "a file has no rate limit",
			"Cut":      "what was read of a file that has not changed stays usable; TestTooManyOpenFiles has an error of the system",
			"Hang":     "reading a local file does not wait",
		},
	})
}

func TestNewRefusesAPath(t *testing.T) {
	for name, test := range map[string]struct{ path, want string }{
		"that is empty":           {"", "is empty"},
		"that is relative":        {"keyset.json", "must be absolute"},
		"of a directory":          {"/etc/kube-kek/", "names a directory"},
		"that is the root":        {"/", "names a directory"},
		"with a space":            {"/etc/my keyset", "printable ASCII"},
		"with a line break":       {"/etc/keyset\n", "printable ASCII"},
		"beyond ASCII":            {"/etc/schlüssel", "printable ASCII"},
		"too long for the key ID": {"/" + strings.Repeat("x", 150), "is 151 bytes long, want at most 150"},
	} {
		t.Run(name, func(t *testing.T) {
			for what, call := range map[string]func() error{
				"New":    func() error { _, err := New(Config{Path: test.path}); return err },
				"Create": func() error { _, err := Create(test.path); return err },
				"Rotate": func() error { _, err := Rotate(test.path); return err },
			} {
				err := call()
				if !errors.Is(err, kek.Invalid) || !strings.Contains(err.Error(), test.want) {
					t.Errorf("%s: %v, want %v and %q", what, err, kek.Invalid, test.want)
				}
			}
		})
	}
}

func TestTheKeyIsTheCleanedPath(t *testing.T) {
	dir := t.TempDir()
	ref, err := Create(dir + "/./x/..//at@keyset.json")
	if err != nil {
		t.Fatal(err)
	}
	got, err := provider(t, dir+"//at@keyset.json", cluster).Current(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if want := (kek.KeyRef{ID: dir + "/at@keyset.json", Version: ref.Version}); got != want || ref != want {
		t.Errorf("Current: %v, Create: %v, want %v", got, ref, want)
	}
}

func TestAProviderMayBeMadeBeforeItsKeyset(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keyset.json")
	p := provider(t, path, cluster)
	if _, err := p.Current(t.Context()); !errors.Is(err, kek.KeyNotFound) || !strings.Contains(err.Error(), "kube-kek keyset create "+path) {
		t.Errorf("Current without a file: %v, want %v and how to make one", err, kek.KeyNotFound)
	}
	want, err := Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := p.Current(t.Context()); err != nil || got != want {
		t.Errorf("Current: %v, %v; want %v", got, err, want)
	}
}

func TestAChangeIsPickedUpByEachOperation(t *testing.T) {
	path := create(t)
	p := provider(t, path, cluster)
	first, err := p.Wrap(t.Context(), []byte("first"))
	if err != nil {
		t.Fatal(err)
	}

	second := rotate(t, path)
	w, err := p.Wrap(t.Context(), []byte("second"))
	if err != nil || w.Key != second {
		t.Fatalf("Wrap after a rotation used %v, %v; want %v", w.Key, err, second)
	}

	third := rotate(t, path)
	w, err = provider(t, path, cluster).Wrap(t.Context(), []byte("third"))
	if err != nil || w.Key != third {
		t.Fatalf("Wrap after another rotation used %v, %v; want %v", w.Key, err, third)
	}
	if got, err := p.Unwrap(t.Context(), w); err != nil || string(got) != "third" {
		t.Errorf("Unwrap of a version that came since: %q, %v", got, err)
	}

	edit(t, path, setStatus(tinkpb.KeyStatusType_DISABLED, first.Key.Version))
	if _, err := p.Unwrap(t.Context(), first); !errors.Is(err, kek.KeyDisabled) {
		t.Errorf("Unwrap of a version that was disabled: %v, want %v", err, kek.KeyDisabled)
	}
	if got, err := p.Current(t.Context()); err != nil || got != third {
		t.Errorf("Current with an old version disabled: %v, %v; want %v", got, err, third)
	}

	edit(t, path, setStatus(tinkpb.KeyStatusType_DESTROYED, first.Key.Version))
	if _, err := p.Unwrap(t.Context(), first); !errors.Is(err, kek.KeyNotFound) {
		t.Errorf("Unwrap of a version that was destroyed: %v, want %v", err, kek.KeyNotFound)
	}

	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Unwrap(t.Context(), w); !errors.Is(err, kek.Invalid) || !strings.Contains(err.Error(), "chmod 600 "+path) {
		t.Errorf("Unwrap from a file that others may read since: %v, want %v and how to mend it", err, kek.Invalid)
	}
}

// The inode and the length stay as they are when an editor saves in place.
func TestAChangeInPlaceIsPickedUp(t *testing.T) {
	path, other := create(t), create(t)
	p := provider(t, path, cluster)
	if _, err := p.Wrap(t.Context(), []byte("key")); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(other)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	later := time.Now().Add(time.Second) // the clock of the file system may tick slowly
	if err := os.Chtimes(path, later, later); err != nil {
		t.Fatal(err)
	}
	want, err := provider(t, other, cluster).Current(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if w, err := p.Wrap(t.Context(), []byte("key")); err != nil || w.Key.Version != want.Version {
		t.Errorf("Wrap used version %s, %v; want %s", w.Key.Version, err, want.Version)
	}
}

// A change that cannot be told from none by the file's looks.
func TestCurrentReadsTheFileInAnyCase(t *testing.T) {
	path := create(t)
	p := provider(t, path, cluster)
	if _, err := p.Current(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := rotate(t, path)
	now, err := look(path, uint32(os.Geteuid()))
	if err != nil {
		t.Fatal(err)
	}
	p.held.file = now
	if got, err := p.Current(t.Context()); err != nil || got != want {
		t.Errorf("Current: %v, %v; want %v", got, err, want)
	}
	if w, err := p.Wrap(t.Context(), []byte("key")); err != nil || w.Key != want {
		t.Errorf("Wrap after it used %v, %v; want %v", w.Key, err, want)
	}
}

func TestADisabledPrimaryDoesNotHinderTheOtherVersions(t *testing.T) {
	path := create(t)
	p := provider(t, path, cluster)
	w, err := p.Wrap(t.Context(), []byte("key"))
	if err != nil {
		t.Fatal(err)
	}
	primary := rotate(t, path)
	edit(t, path, setStatus(tinkpb.KeyStatusType_DISABLED, primary.Version))

	if got, err := p.Unwrap(t.Context(), w); err != nil || string(got) != "key" {
		t.Errorf("Unwrap under the enabled version: %q, %v", got, err)
	}
	if w, err := p.Wrap(t.Context(), []byte("key")); !errors.Is(err, kek.KeyDisabled) {
		t.Errorf("Wrap under a disabled primary: %v, %v; want %v", w.Key, err, kek.KeyDisabled)
	}
	if ref, err := p.Current(t.Context()); !errors.Is(err, kek.KeyDisabled) {
		t.Errorf("Current with a disabled primary: %v, %v; want %v", ref, err, kek.KeyDisabled)
	}
	if f := p.Facts(); f.State != kek.StateDisabled || f.Key != primary {
		t.Errorf("Facts: %q of %v, want %q of %v", f.State, f.Key, kek.StateDisabled, primary)
	}
	if _, err := Rotate(path); !errors.Is(err, kek.KeyDisabled) {
		t.Errorf("Rotate with a disabled primary: %v, want %v", err, kek.KeyDisabled)
	}
}

func TestAWrapThatNamesAnotherVersion(t *testing.T) {
	path := create(t)
	p := provider(t, path, cluster)
	w, err := p.Wrap(t.Context(), []byte("key"))
	if err != nil {
		t.Fatal(err)
	}
	second := rotate(t, path)
	for name, test := range map[string]struct {
		version string
		want    kek.Kind
	}{
		"of the keyset":         {second.Version, kek.Corrupt},
		"not of the keyset":     {"1", kek.KeyNotFound},
		"empty":                 {"", kek.KeyNotFound},
		"spelled another way":   {"0" + w.Key.Version, kek.KeyNotFound},
		"larger than 32 bits":   {"99999999999", kek.KeyNotFound},
		"that is not a numeral": {"primary", kek.KeyNotFound},
	} {
		t.Run(name, func(t *testing.T) {
			w := kek.Wrapped{Key: kek.KeyRef{ID: path, Version: test.version}, Ciphertext: w.Ciphertext}
			if _, err := p.Unwrap(t.Context(), w); !errors.Is(err, test.want) {
				t.Errorf("Unwrap: %v, want %v", err, test.want)
			}
		})
	}
}

func TestFactsSayWhatAKeysetProtects(t *testing.T) {
	path := create(t)
	p := provider(t, path, cluster)
	ref, err := p.Current(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := kek.Facts{
		Key: ref, State: kek.StateEnabled,
		Rotation: "by hand: kube-kek keyset rotate " + path,
		Notes: []string{"The keyset lies in clear in " + path + ": whoever reads that file and etcd reads every Secret. " +
			"It is for trying out, labs and edge nodes whose disk is encrypted."},
	}
	if diff := cmp.Diff(want, p.Facts()); diff != "" {
		t.Errorf("Facts (-want +got):\n%s", diff)
	}
}

// Under rotations no call fails and no wrap is lost.
func TestRotationsUnderLoad(t *testing.T) {
	path := create(t)
	p := provider(t, path, cluster)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 4 {
				if _, err := Rotate(path); err != nil {
					t.Errorf("Rotate: %v", err)
				}
			}
		})
		wg.Go(func() {
			for range 50 {
				w, err := p.Wrap(t.Context(), []byte("key"))
				if err != nil {
					t.Errorf("Wrap: %v", err)
					return
				}
				if got, err := p.Unwrap(t.Context(), w); err != nil || string(got) != "key" {
					t.Errorf("Unwrap: %q, %v", got, err)
				}
				if _, err := p.Current(t.Context()); err != nil {
					t.Errorf("Current: %v", err)
				}
			}
		})
	}
	wg.Wait()
	c, err := read(path, uint32(os.Geteuid()))
	if err != nil {
		t.Fatal(err)
	}
	if len(c.status) != 1+8*4 {
		t.Errorf("the keyset holds %d keys, want %d: a rotation was lost", len(c.status), 1+8*4)
	}
}

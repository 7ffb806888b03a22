package tinkkeyset

import (
	"bytes"
	"encoding/base64"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/insecurecleartextkeyset"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/mac"
	tinkpb "github.com/tink-crypto/tink-go/v2/proto/tink_go_proto"
	"golang.org/x/sys/unix"

	"github.com/kube-kek/kube-kek/kek"
)

func keysetJSON(t testing.TB, template *tinkpb.KeyTemplate, change func(*tinkpb.Keyset)) []byte {
	t.Helper()
	handle, err := keyset.NewHandle(template)
	if err != nil {
		t.Fatal(err)
	}
	ks := insecurecleartextkeyset.KeysetMaterial(handle)
	if change != nil {
		change(ks)
	}
	var out bytes.Buffer
	if err := keyset.NewJSONWriter(&out).Write(ks); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func encryptedKeysetJSON(t *testing.T) []byte {
	t.Helper()
	handle, err := keyset.NewHandle(aead.AES256GCMKeyTemplate())
	if err != nil {
		t.Fatal(err)
	}
	master, err := aead.New(handle)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := handle.Write(keyset.NewJSONWriter(&out), master); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestAFileThatIsNoUsableKeyset(t *testing.T) {
	whole := keysetJSON(t, aead.AES256GCMKeyTemplate(), nil)
	tests := map[string]struct {
		data []byte
		want string
	}{
		"empty":                {nil, "is empty"},
		"blank":                {[]byte(" \n"), "is empty"},
		"torn":                 {whole[:len(whole)/2], "not a whole Tink keyset"},
		"with something more":  {append(bytes.Clone(whole), "{}"...), "not a whole Tink keyset"},
		"YAML":                 {[]byte("kek: x\n"), "not a whole Tink keyset"},
		"JSON of another kind": {[]byte(`{"kind":"Secret"}`), "not a whole Tink keyset"},
		"an unknown field":     {bytes.Replace(whole, []byte(`"primaryKeyId"`), []byte(`"primaryKey"`), 1), "not a whole Tink keyset"},
		"no keys":              {[]byte(`{"primaryKeyId":1,"key":[]}`), "no primary key"},
		"no object":            {[]byte(`{}`), "no primary key"},
		"encrypted":            {encryptedKeysetJSON(t), "is an encrypted keyset"},
		"of MAC keys":          {keysetJSON(t, mac.HMACSHA256Tag256KeyTemplate(), nil), "not for AEAD"},
		"without a prefix":     {keysetJSON(t, aead.AES256GCMNoPrefixKeyTemplate(), nil), "output prefix RAW, want TINK"},
		"without its primary":  {keysetJSON(t, aead.AES256GCMKeyTemplate(), func(ks *tinkpb.Keyset) { ks.PrimaryKeyId++ }), "no primary key"},
		"with one ID twice":    {keysetJSON(t, aead.AES256GCMKeyTemplate(), func(ks *tinkpb.Keyset) { ks.Key = append(ks.Key, ks.Key[0]) }), "two keys with the ID"},
		"with a damaged key": {keysetJSON(t, aead.AES256GCMKeyTemplate(), func(ks *tinkpb.Keyset) {
			ks.Key[0].KeyData.Value = ks.Key[0].KeyData.Value[:9]
		}), "damaged"},
		"with a key without data": {keysetJSON(t, aead.AES256GCMKeyTemplate(), func(ks *tinkpb.Keyset) { ks.Key[0].KeyData = nil }), "damaged"},
		"with a key of an unknown type": {keysetJSON(t, aead.AES256GCMKeyTemplate(), func(ks *tinkpb.Keyset) {
			ks.Key[0].KeyData.TypeUrl = "type.googleapis.com/example.Unknown"
		}), "not for AEAD"},
		"with a key of an unknown status": {keysetJSON(t, aead.AES256GCMKeyTemplate(), func(ks *tinkpb.Keyset) {
			ks.Key[0].Status = tinkpb.KeyStatusType_UNKNOWN_STATUS
		}), "status"},
		"too large": {bytes.Repeat([]byte(" "), maxFile+1), "no keyset is larger"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "keyset.json")
			write(t, path, test.data)
			p := provider(t, path, cluster)
			for op, err := range everyError(t, p) {
				if kek.KindOf(err) != kek.Invalid || !strings.Contains(err.Error(), test.want) {
					t.Errorf("%s: %v, want %v and %q", op, err, kek.Invalid, test.want)
				}
			}
			if _, err := Rotate(path); kek.KindOf(err) != kek.Invalid {
				t.Errorf("Rotate: %v, want %v", err, kek.Invalid)
			}
			if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, test.data) {
				t.Errorf("Rotate changed a file that it refused: %v", err)
			}
		})
	}
}

// everyError calls every operation of p, each of which must fail.
func everyError(t *testing.T, p *Provider) map[kek.Op]error {
	t.Helper()
	errs := map[kek.Op]error{}
	_, errs[kek.OpCurrent] = p.Current(t.Context())
	_, errs[kek.OpWrap] = p.Wrap(t.Context(), []byte("key"))
	_, errs[kek.OpUnwrap] = p.Unwrap(t.Context(), kek.Wrapped{Key: kek.KeyRef{ID: p.path, Version: "1"}, Ciphertext: []byte{1}})
	for op, err := range errs {
		if err == nil {
			t.Errorf("%s succeeded", op)
		}
	}
	return errs
}

// A JSON parser's error quotes what it could not read, and that may be a key.
func TestAnErrorOfTheParserDoesNotQuoteTheFile(t *testing.T) {
	whole := keysetJSON(t, aead.AES256GCMKeyTemplate(), nil)
	_, after, ok := bytes.Cut(whole, []byte(`"value":"`))
	if !ok {
		t.Fatalf("no key in the keyset")
	}
	value, _, _ := bytes.Cut(after, []byte(`"`))
	if _, err := base64.StdEncoding.DecodeString(string(value)); err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{
		"not base64":  bytes.Replace(whole, value, append([]byte("!"), value...), 1),
		"not a text":  bytes.Replace(whole, append([]byte(`"value":"`), value...), append([]byte(`"value":`), value...), 1),
		"not a field": bytes.Replace(whole, []byte(`"value":`), value, 1),
	} {
		_, err := parse(data)
		if err == nil || strings.Contains(err.Error(), string(value[8:16])) {
			t.Errorf("%s: the error holds the key, or there is none", name)
		}
	}
}

func TestAFileThatIsNotOursAlone(t *testing.T) {
	for mode, want := range map[fs.FileMode]string{
		0o600: "", 0o400: "", 0o700: "",
		0o640: "mode 0640", 0o620: "mode 0620", 0o610: "mode 0610",
		0o604: "mode 0604", 0o602: "mode 0602", 0o644: "mode 0644", 0o666: "mode 0666",
	} {
		path := create(t)
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		_, err := provider(t, path, cluster).Current(t.Context())
		switch {
		case want == "" && err != nil:
			t.Errorf("mode %v: %v", mode, err)
		case want != "" && (kek.KindOf(err) != kek.Invalid || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "chmod 600 "+path)):
			t.Errorf("mode %v: %v, want %v, %q and how to mend it", mode, err, kek.Invalid, want)
		}
	}
	for name, test := range map[string]struct {
		owner, self uint32
		want        string
	}{
		"ours":                {1000, 1000, ""},
		"root's":              {0, 1000, ""},
		"root's, for root":    {0, 0, ""},
		"another's":           {1001, 1000, "belongs to user 1001, who could read and change it: chown 1000 /k"},
		"another's, for root": {1001, 0, "belongs to user 1001, who could read and change it: chown 0 /k"},
	} {
		got := ""
		if err := (identity{mode: unix.S_IFREG | 0o600, uid: test.owner}).refusal("/k", test.self); err != nil {
			got = err.Error()
		}
		if got != test.want {
			t.Errorf("a file that is %s: %q, want %q", name, got, test.want)
		}
	}
}

func TestAPathThatIsNoFile(t *testing.T) {
	dir := t.TempDir()
	keyset := create(t)
	link, fifo := filepath.Join(dir, "link"), filepath.Join(dir, "fifo")
	if err := os.Symlink(keyset, link); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "socket")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	for name, test := range map[string]struct {
		path string
		kind kek.Kind
		want string
	}{
		"a socket":            {socket, kek.Invalid, "not a regular file"},
		"a symbolic link":     {link, kek.Invalid, "symbolic link"},
		"a directory":         {dir, kek.Invalid, "not a regular file"},
		"a named pipe":        {fifo, kek.Invalid, "not a regular file"},
		"a device":            {"/dev/zero", kek.Invalid, "not a regular file"},
		"nothing":             {dir + "/none", kek.KeyNotFound, "kube-kek keyset create " + dir + "/none"},
		"nothing in nothing":  {dir + "/none/none", kek.KeyNotFound, "kube-kek keyset create"},
		"something in a file": {keyset + "/none", kek.KeyNotFound, "kube-kek keyset create"},
	} {
		t.Run(name, func(t *testing.T) {
			for op, err := range everyError(t, provider(t, test.path, cluster)) {
				if kek.KindOf(err) != test.kind || !strings.Contains(err.Error(), test.want) {
					t.Errorf("%s: %v, want %v and %q", op, err, test.kind, test.want)
				}
			}
			if _, err := Rotate(test.path); kek.KindOf(err) != test.kind {
				t.Errorf("Rotate: %v, want %v", err, test.kind)
			}
		})
	}
}

func TestAFileThatMayNotBeRead(t *testing.T) {
	path := create(t)
	if err := os.Chmod(path, 0); err != nil {
		t.Fatal(err)
	}
	p := provider(t, path, cluster)
	done := make(chan map[kek.Op]error)
	go func() {
		// Root may read it all the same, and so root's rights are given up, for
		// this thread and for good: it ends with the goroutine.
		runtime.LockOSThread()
		if os.Geteuid() == 0 {
			if err := unix.Setfsuid(65534); err != nil {
				t.Errorf("giving root's rights up: %v", err)
			}
		}
		done <- everyError(t, p)
	}()
	for op, err := range <-done {
		if kek.KindOf(err) != kek.Unauthenticated {
			t.Errorf("%s: %v, want %v", op, err, kek.Unauthenticated)
		}
	}
}

func TestTooManyOpenFiles(t *testing.T) {
	path := create(t)
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	none := limit
	none.Cur = 0
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &none); err != nil {
		t.Fatal(err)
	}
	errs := everyError(t, provider(t, path, cluster))
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	for op, err := range errs {
		if kek.KindOf(err) != kek.Unavailable || !errors.Is(err, unix.EMFILE) {
			t.Errorf("%s: %v, want %v for %v", op, err, kek.Unavailable, unix.EMFILE)
		}
	}
}

func TestCreateMakesAFileForUsAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keyset.json")
	old := unix.Umask(0o777)
	_, err := Create(path)
	unix.Umask(old)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode() != 0o600 {
		t.Errorf("the file has mode %v, want 0600 whatever the umask", info.Mode())
	}
	wantFiles(t, filepath.Dir(path), "keyset.json")
}

func wantFiles(t *testing.T, dir string, want ...string) {
	t.Helper()
	var got []string
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("files in the directory (-want +got):\n%s", diff)
	}
}

func TestCreateRefuses(t *testing.T) {
	dir := t.TempDir()
	keyset := filepath.Join(dir, "keyset.json")
	if _, err := Create(keyset); err != nil {
		t.Fatal(err)
	}
	dangling := filepath.Join(dir, "link")
	if err := os.Symlink(filepath.Join(dir, "nowhere"), dangling); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(keyset)
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		path string
		kind kek.Kind
		want string
	}{
		"to overwrite a keyset":       {keyset, kek.Invalid, "kube-kek keyset rotate " + keyset},
		"to write through a link":     {dangling, kek.Invalid, "exists already"},
		"to make a directory":         {dir + "/none/keyset.json", kek.KeyNotFound, "opening its directory"},
		"a path in what is no folder": {keyset + "/keyset.json", kek.KeyNotFound, "its directory"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Create(test.path)
			if kek.KindOf(err) != test.kind || !strings.Contains(err.Error(), test.want) || !strings.HasPrefix(err.Error(), "creating a keyset with "+test.path) {
				t.Errorf("Create: %v, want %v and %q", err, test.kind, test.want)
			}
		})
	}
	after, err := os.ReadFile(keyset)
	if err != nil || !bytes.Equal(before, after) {
		t.Errorf("the keyset changed: %v", err)
	}
	wantFiles(t, dir, "keyset.json", "link")
}

func TestOneOfManyCreatesSucceeds(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keyset.json")
	refs := make(chan kek.KeyRef, 16)
	for range cap(refs) {
		go func() {
			ref, err := Create(path)
			if err != nil && kek.KindOf(err) != kek.Invalid {
				t.Errorf("Create: %v", err)
			}
			refs <- ref
		}()
	}
	var made []kek.KeyRef
	for range cap(refs) {
		if ref := <-refs; ref != (kek.KeyRef{}) {
			made = append(made, ref)
		}
	}
	got, err := provider(t, path, cluster).Current(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]kek.KeyRef{got}, made); diff != "" {
		t.Errorf("the keysets made, and the one that is there (-there +made):\n%s", diff)
	}
}

func TestRotateKeepsModeAndOwner(t *testing.T) {
	path := create(t)
	if err := os.Chmod(path, 0o400); err != nil {
		t.Fatal(err)
	}
	owner := os.Geteuid()
	if owner == 0 { // only root can give a file away
		owner = 65534
		if err := os.Chown(path, owner, -1); err != nil {
			t.Fatal(err)
		}
	}
	before, err := look(path, uint32(owner))
	if err != nil {
		t.Fatal(err)
	}
	rotate(t, path)
	after, err := look(path, before.uid)
	if err != nil {
		t.Fatal(err)
	}
	if after.mode != before.mode || after.uid != before.uid {
		t.Errorf("mode %o and owner %d, want %o and %d", after.mode, after.uid, before.mode, before.uid)
	}
	wantFiles(t, filepath.Dir(path), "keyset.json")
}

// A file that cannot be put in place leaves the old one as it is, and nothing beside it.
func TestAChangeThatFailsLeavesNoTrace(t *testing.T) {
	path := create(t)
	before, err := look(path, uint32(os.Geteuid()))
	if err != nil {
		t.Fatal(err)
	}
	handle, err := keyset.NewHandle(aead.AES256GCMKeyTemplate())
	if err != nil {
		t.Fatal(err)
	}
	_, err = change("rotating a keyset", path, func(string) (next, error) {
		return next{handle, 0o600, os.Geteuid(), func(string, string) error { return unix.EIO }}, nil
	})
	if kek.KindOf(err) != kek.Unavailable || !errors.Is(err, unix.EIO) {
		t.Errorf("change: %v, want %v for %v", err, kek.Unavailable, unix.EIO)
	}
	if after, err := look(path, uint32(os.Geteuid())); err != nil || after != before {
		t.Errorf("the file changed: %v", err)
	}
	wantFiles(t, filepath.Dir(path), "keyset.json")
}

func FuzzParse(f *testing.F) {
	whole := keysetJSON(f, aead.AES256GCMKeyTemplate(), nil)
	f.Add(whole)
	f.Add(whole[:len(whole)/2])
	f.Add(keysetJSON(f, mac.HMACSHA256Tag256KeyTemplate(), nil))
	f.Add(keysetJSON(f, aead.AES256GCMKeyTemplate(), setStatus(tinkpb.KeyStatusType_DISABLED, "all")))
	f.Add([]byte(`{"primaryKeyId":1,"key":[null]}`))
	f.Add([]byte(`{"encryptedKeyset":"AA=="}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := parse(data)
		if err != nil {
			if kek.KindOf(err) != kek.Invalid {
				t.Errorf("parse: %v, want %v", err, kek.Invalid)
			}
			return
		}
		if _, ok := c.status[c.primary]; !ok {
			t.Errorf("a keyset without its primary was taken")
		}
		if c.usable(c.primary) == nil && (c.handle == nil || c.aead == nil) {
			t.Errorf("the primary is usable and there is nothing to use it with")
		}
	})
}

func TestWhatAKilledChangeLeftIsRemovedByTheNext(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "keyset.json")
	if _, err := Create(path); err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(dir, ".other.json.1.tmp")
	left := filepath.Join(dir, ".keyset.json.1.tmp")
	for _, name := range []string{other, left} {
		if err := os.WriteFile(name, []byte("{}"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Rotate(path); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(left); err == nil {
		t.Error("the file of a killed change is still there")
	}
	if _, err := os.Lstat(other); err != nil {
		t.Errorf("another keyset's file was removed: %v", err)
	}
}

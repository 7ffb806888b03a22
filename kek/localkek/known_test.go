package localkek_test

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kube-kek/kube-kek/kek"
	"github.com/kube-kek/kube-kek/kek/kektest"
	"github.com/kube-kek/kube-kek/kek/localkek"
)

// Each ring of these tests is a start of the plugin beside a kube-apiserver that
// keeps running, and so asks for none of its seeds again.
func TestARestartedRingOpensWhatItKnewBeforeAnOutageComes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := kektest.New(kektest.Config{})
		c := config(p)
		c.Store = localkek.FileStore{Path: filepath.Join(t.TempDir(), "known")}
		s := seed()
		var records []localkek.Sealed
		for range 5 {
			r := start(t, c)
			records = append(records, mustSeal(t, r, s))
			time.Sleep(10 * time.Second)
			r.Close()
		}

		r := start(t, c)
		time.Sleep(10 * time.Second)
		if snap := r.Snapshot(); snap.LocalKEKs != 6 || snap.Known != 6 {
			t.Errorf("%d local KEKs held and %d known, want 6: five earlier ones and a new one", snap.LocalKEKs, snap.Known)
		}
		for _, call := range p.Log() {
			if call.Purpose != kek.Probe {
				t.Errorf("a %s call was made as a %s", call.Op, call.Purpose)
			}
		}
		p.Fail(kek.Unavailable)
		time.Sleep(time.Hour)
		for _, rec := range records {
			mustOpen(t, r, rec, s)
		}
	})
}

func TestWhatWasReadIsKnownToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := kektest.New(kektest.Config{})
		s := seed()
		ofAnotherNode := mustSeal(t, start(t, config(p)), s)
		c := config(p)
		c.Store = localkek.FileStore{Path: filepath.Join(t.TempDir(), "known")}
		mustOpen(t, start(t, c), ofAnotherNode, s)
		time.Sleep(10 * time.Second)

		r := start(t, c)
		time.Sleep(10 * time.Second)
		p.Fail(kek.Unavailable)
		mustOpen(t, r, ofAnotherNode, s)
	})
}

func TestAfterARefusalAllIsOpenedAgainBeforeItIsAskedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := kektest.New(kektest.Config{})
		s := seed()
		old := mustSeal(t, start(t, config(p)), s)
		r := start(t, config(p)) // without a store: what is known is in memory
		mustOpen(t, r, old, s)
		p.Disable()
		time.Sleep(30 * time.Minute)
		refuses(t, r, old, kek.KeyDisabled)
		p.Enable()
		time.Sleep(10 * time.Minute)
		p.Fail(kek.Unavailable)
		mustOpen(t, r, old, s)
	})
}

func TestAnOutageAtTheStartIsMadeUpForLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := kektest.New(kektest.Config{})
		c := config(p)
		c.Store = localkek.FileStore{Path: filepath.Join(t.TempDir(), "known")}
		s := seed()
		old := mustSeal(t, start(t, c), s)
		time.Sleep(10 * time.Second)

		p.Fail(kek.Unavailable)
		r := start(t, c)
		time.Sleep(time.Hour)
		p.Heal()
		time.Sleep(10 * time.Minute)
		p.Fail(kek.Unavailable)
		mustOpen(t, r, old, s)
	})
}

func TestAWrongConfigurationForgetsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := kektest.New(kektest.Config{ID: "a"}), kektest.New(kektest.Config{ID: "b"})
		right := config(a)
		right.Current.ID = "a"
		right.Store = localkek.FileStore{Path: filepath.Join(t.TempDir(), "known")}
		s := seed()
		old := mustSeal(t, start(t, right), s)
		time.Sleep(10 * time.Second)

		otherKey, otherCluster := right, right
		otherKey.Current = localkek.Home{Scheme: "fake", ID: "b", Provider: b} // and a is not in previous
		otherCluster.Cluster = "other"
		for _, wrong := range []localkek.Config{otherKey, otherCluster} {
			r := start(t, wrong)
			time.Sleep(24 * time.Hour)
			r.Close()
		}

		r := start(t, right)
		time.Sleep(10 * time.Second)
		a.Fail(kek.Unavailable)
		mustOpen(t, r, old, s)
	})
}

func TestAFileThatIsPutRightIsOpenedWithoutARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := kektest.New(kektest.Config{})
		c := config(p)
		c.Store = localkek.FileStore{Path: filepath.Join(t.TempDir(), "known")}
		s := seed()
		old := mustSeal(t, start(t, c), s)
		time.Sleep(10 * time.Second)

		r := start(t, c)
		p.Fail(kek.Invalid, kek.OpUnwrap) // a keyset whose mode is wrong, say
		time.Sleep(time.Hour)
		p.Heal()
		time.Sleep(2 * time.Hour)
		p.Fail(kek.Unavailable)
		mustOpen(t, r, old, s)
	})
}

func TestARetiredVersionIsForgottenInTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := kektest.New(kektest.Config{})
		c := config(p)
		r := start(t, c)
		mustSeal(t, r, seed())
		p.Rotate()
		time.Sleep(time.Hour)
		p.Disable("1")
		time.Sleep(time.Hour)
		if n := r.Snapshot().Known; n != 2 {
			t.Errorf("%d local KEKs known an hour after the old version was retired, want 2: it may be enabled again", n)
		}
		time.Sleep(2 * c.Lease)
		if snap := r.Snapshot(); snap.Known != 1 || snap.LocalKEKs != 1 {
			t.Errorf("%d local KEKs known and %d held, want the current one alone", snap.Known, snap.LocalKEKs)
		}
	})
}

func TestASaveThatFailedIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "known")
		if err := os.Mkdir(path, 0o700); err != nil {
			t.Fatal(err)
		}
		c := config(kektest.New(kektest.Config{}))
		c.Store = localkek.FileStore{Path: path}
		start(t, c)
		time.Sleep(time.Minute)
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		if known, err := c.Store.Load(); err != nil || len(known) != 1 {
			t.Errorf("%d saved, %v, want 1", len(known), err)
		}
	})
}

func TestAFileOfSomeoneElseIsNotReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "known")
	write(t, path, `{"primaryKeyId":1}`, 0o600)
	if err := (localkek.FileStore{Path: path}).Save(nil); err == nil {
		t.Error("Save replaced it")
	}
	if got, _ := os.ReadFile(path); string(got) != `{"primaryKeyId":1}` {
		t.Errorf("the file holds %q now", got)
	}
}

func TestStrictModeKnowsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "known")
		c := config(kektest.New(kektest.Config{}))
		c.Lease, c.MaxUses, c.Store = 0, 1, localkek.FileStore{Path: path}
		mustSeal(t, start(t, c), seed())
		time.Sleep(time.Hour)
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("a file was written: %v", err)
		}
	})
}

func TestAFileThatCannotBeReadStopsNothing(t *testing.T) {
	for name, make := range map[string]func(t *testing.T, path string){
		"torn":                 func(t *testing.T, path string) { write(t, path, `{"version":1,"rec`, 0o600) },
		"of a later version":   func(t *testing.T, path string) { write(t, path, `{"version":2}`, 0o600) },
		"writable by others":   func(t *testing.T, path string) { write(t, path, `{"version":1}`, 0o666) },
		"a directory":          func(t *testing.T, path string) { os.Mkdir(path, 0o700) },
		"a link to another":    func(t *testing.T, path string) { os.Symlink("/etc/passwd", path) },
		"records that are not": func(t *testing.T, path string) { write(t, path, `{"version":1,"records":[{},{"keyID":"x"}]}`, 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "known")
			make(t, path)
			synctest.Test(t, func(t *testing.T) {
				var log bytes.Buffer
				c := config(kektest.New(kektest.Config{}))
				c.Store, c.Logger = localkek.FileStore{Path: path}, slog.New(slog.NewTextHandler(&log, nil))
				r := start(t, c)
				s := seed()
				mustOpen(t, r, mustSeal(t, r, s), s)
				time.Sleep(time.Minute)
				synctest.Wait()
				if !strings.Contains(log.String(), "known local KEKs") && !strings.Contains(log.String(), "cannot be opened") {
					t.Errorf("the log is silent:\n%s", &log)
				}
			})
		})
	}
}

func write(t *testing.T, path, content string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func TestTheFileHoldsNoKeyAndIsForUsAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "known")
	store := localkek.FileStore{Path: path}
	want := []localkek.Sealed{{KeyID: "fake:fake@1", Ciphertext: []byte{1, 2}, Annotations: map[string][]byte{localkek.AnnotationName: {3}}}}
	for range 2 { // the second replaces the first
		if err := store.Save(want); err != nil {
			t.Fatal(err)
		}
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v, want 0600", info.Mode(), err)
	}
	if left, _ := filepath.Glob(path + ".*"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	got, err := store.Load()
	if err != nil || len(got) != 1 || got[0].KeyID != want[0].KeyID {
		t.Errorf("Load: %v, %v", got, err)
	}
}

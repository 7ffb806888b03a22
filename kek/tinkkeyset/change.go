package tinkkeyset

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/insecurecleartextkeyset"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"golang.org/x/sys/unix"

	"github.com/kube-kek/kube-kek/kek"
)

// Create makes a keyset of one AES-256-GCM key in a new file at path, which must
// be absolute, with mode 0600. The directory must exist and the file must not:
// a keyset that something is wrapped under is never overwritten. The file is
// there whole or not at all, and on disk when Create returns.
func Create(path string) (kek.KeyRef, error) {
	return change("creating a keyset", path, func(path string) (next, error) {
		if _, err := os.Lstat(path); err == nil {
			return next{}, because(kek.Invalid, "exists already and is not overwritten; to add a key to it: kube-kek keyset rotate %s", path)
		}
		handle, err := keyset.NewHandle(aead.AES256GCMKeyTemplate())
		// A link, unlike a rename, does not replace a file that came meanwhile.
		return next{handle, 0o600, os.Geteuid(), os.Link}, err
	})
}

// Rotate adds an AES-256-GCM key to the keyset at path and makes it current. The
// old keys stay and open what they wrapped. The file is replaced at once, keeps
// its mode and owner (root may rotate the keyset of a daemon that is not root),
// and is on disk when Rotate returns. A Rotate or Create in the same directory
// waits for another.
func Rotate(path string) (kek.KeyRef, error) {
	return change("rotating a keyset", path, func(path string) (next, error) {
		self := uint32(os.Geteuid())
		if self == 0 { // then the owner is whom the new file is for, too
			var st unix.Stat_t
			if err := unix.Lstat(path, &st); err != nil {
				return next{}, fileError(path, err)
			}
			self = st.Uid
		}
		c, err := read(path, self)
		if err == nil {
			err = c.usable(c.primary)
		}
		if err != nil {
			return next{}, err
		}
		manager := keyset.NewManagerFromHandle(c.handle)
		id, err := manager.Add(aead.AES256GCMKeyTemplate())
		if err == nil {
			err = manager.SetPrimary(id)
		}
		if err != nil {
			return next{}, err
		}
		handle, err := manager.Handle()
		return next{handle, fs.FileMode(c.file.mode & 0o777), int(c.file.uid), os.Rename}, err
	})
}

// next is what a changed file will be, and how it comes in place of the old one.
type next struct {
	handle *keyset.Handle
	mode   fs.FileMode
	owner  int
	place  func(temp, path string) error
}

func change(op kek.Op, path string, decide func(path string) (next, error)) (kek.KeyRef, error) {
	path, err := cleanPath(path)
	if err != nil {
		return kek.KeyRef{}, err
	}
	version, err := changeLocked(path, decide)
	if err != nil {
		return kek.KeyRef{}, operationError(op, kek.KeyRef{ID: path}, err)
	}
	return kek.KeyRef{ID: path, Version: version}, nil
}

// changeLocked holds a lock on the directory from the reading to the replacing,
// so that no key that another process adds is lost.
func changeLocked(path string, decide func(path string) (next, error)) (version string, err error) {
	dir, err := os.OpenFile(filepath.Dir(path), os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return "", fmt.Errorf("opening its directory: %w", err)
	}
	defer dir.Close() // and unlock
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		return "", fmt.Errorf("locking its directory: %w", err)
	}
	if err := removeTemps(path); err != nil {
		return "", err
	}
	n, err := decide(path)
	if err != nil {
		return "", err
	}
	primary, err := n.handle.Primary()
	if err != nil {
		return "", err
	}
	temp, err := n.write(path)
	if err != nil {
		return "", fmt.Errorf("writing: %w", err)
	}
	defer os.Remove(temp) // after a rename there is none
	if err := n.place(temp, path); err != nil {
		return "", fmt.Errorf("putting the new keyset in place: %w", err)
	}
	return versionName(primary.KeyID()), dir.Sync()
}

// A file that becomes the one at path has a name of tempPrefix, a number and
// tempSuffix.
func tempPrefix(path string) string { return "." + filepath.Base(path) + "." }

const tempSuffix = ".tmp"

// removeTemps removes what a change that was killed left: it holds keys. It is
// called with the lock held, so no other change is under way.
func removeTemps(path string) error {
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("reading its directory: %w", err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), tempPrefix(path)) && strings.HasSuffix(e.Name(), tempSuffix) {
			if err := os.Remove(filepath.Join(filepath.Dir(path), e.Name())); err != nil {
				return fmt.Errorf("removing what a killed change left: %w", err)
			}
		}
	}
	return nil
}

// write writes the keyset to a new file beside path, down to the disk.
func (n next) write(path string) (temp string, err error) {
	f, err := os.CreateTemp(filepath.Dir(path), tempPrefix(path)+"*"+tempSuffix)
	if err != nil {
		return "", err
	}
	var data bytes.Buffer
	defer func() { clear(data.Bytes()) }()
	err = insecurecleartextkeyset.Write(n.handle, keyset.NewJSONWriter(&data))
	if err == nil {
		_, err = f.Write(data.Bytes())
	}
	if err == nil {
		err = f.Chmod(n.mode)
	}
	if err == nil && n.owner != os.Geteuid() {
		err = f.Chown(n.owner, -1)
	}
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		os.Remove(f.Name())
		return "", err
	}
	return f.Name(), nil
}

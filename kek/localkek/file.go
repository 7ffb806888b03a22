package localkek

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxFile is the largest file in bytes that [FileStore] reads: 4096 records of
// the largest annotation, in base64.
const maxFile = 32 << 20

// FileStore is a [Store] in a file of mode 0600 at an absolute path. The file
// holds no secret. It may lie on a file system that does not survive a reboot,
// since that ends kube-apiserver too, which then asks for all it needs.
type FileStore struct{ Path string }

// file is the JSON in it.
type file struct {
	Version int          `json:"version"`
	Records []fileRecord `json:"records"`
}

type fileRecord struct {
	KeyID      string `json:"keyID"`
	Ciphertext []byte `json:"ciphertext"`
	Annotation []byte `json:"annotation"`
}

// Load implements [Store]. It refuses what is not a regular file of ours or
// root's that nobody else may write.
func (s FileStore) Load() ([]Sealed, error) {
	f, err := os.OpenFile(s.Path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading known local KEKs: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("reading known local KEKs: %w", err)
	}
	uid := info.Sys().(*syscall.Stat_t).Uid
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o022 != 0 || uid != 0 && uid != uint32(os.Geteuid()) {
		return nil, fmt.Errorf("reading known local KEKs: %s (%s, of user %d) is not a file that only we write: remove it", s.Path, info.Mode(), uid)
	}
	if info.Size() > maxFile {
		return nil, fmt.Errorf("reading known local KEKs: %s has %d bytes, at most %d: remove it", s.Path, info.Size(), maxFile)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		return nil, fmt.Errorf("reading known local KEKs: %w", err)
	}
	return parseFile(data)
}

func parseFile(data []byte) ([]Sealed, error) {
	var in file
	if err := json.Unmarshal(data, &in); err != nil {
		return nil, fmt.Errorf("reading known local KEKs: not a file of this plugin, remove it: %w", err)
	}
	if in.Version != 1 {
		return nil, fmt.Errorf("reading known local KEKs: version %d, this plugin reads version 1: remove the file", in.Version)
	}
	var known []Sealed
	for _, r := range in.Records {
		known = append(known, Sealed{KeyID: r.KeyID, Ciphertext: r.Ciphertext, Annotations: map[string][]byte{AnnotationName: r.Annotation}})
	}
	return known, nil
}

// Save implements [Store]: a whole new file takes the old one's place. A file
// that is not one of these is left alone.
func (s FileStore) Save(known []Sealed) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("saving known local KEKs: %w", err)
		}
	}()
	if _, err := s.Load(); err != nil {
		return err
	}
	out := file{Version: 1, Records: []fileRecord{}}
	for _, k := range known {
		out.Records = append(out.Records, fileRecord{k.KeyID, k.Ciphertext, k.Annotations[AnnotationName]})
	}
	data, err := json.Marshal(out)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(s.Path), filepath.Base(s.Path)+".*") // mode 0600
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), s.Path)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

package tinkkeyset

import (
	"bytes"
	"io"
	"os"
	"strconv"

	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/insecurecleartextkeyset"
	"github.com/tink-crypto/tink-go/v2/keyset"
	tinkpb "github.com/tink-crypto/tink-go/v2/proto/tink_go_proto"
	"github.com/tink-crypto/tink-go/v2/tink"
	"golang.org/x/sys/unix"

	"github.com/kube-kek/kube-kek/kek"
)

// maxFile is the largest keyset file in bytes: thousands of keys.
const maxFile = 1 << 20

// contents is what a keyset file held when it was read.
type contents struct {
	file    identity
	primary string
	status  map[string]tinkpb.KeyStatusType // by version
	aead    tink.AEAD                       // over the enabled keys; nil if there are none
	handle  *keyset.Handle                  // nil if the primary is not enabled
}

// usable returns why a version may not be used, nil if it may.
func (c *contents) usable(version string) error {
	switch status, ok := c.status[version]; {
	case !ok || status == tinkpb.KeyStatusType_DESTROYED:
		return because(kek.KeyNotFound, "the keyset has no key %q: restore the keyset that had it", version)
	case status != tinkpb.KeyStatusType_ENABLED:
		return because(kek.KeyDisabled, "the keyset has key %s disabled", version)
	}
	return nil
}

// identity tells one state of a file from another: a change of the bytes, the
// mode or the owner, or another file in its place. Two changes in place within
// one tick of the file system's clock look alike; Current reads in any case.
type identity struct {
	dev, ino     uint64
	size         int64
	mtime, ctime unix.Timespec
	mode, uid    uint32
}

// look returns the identity of the file at path, or why user self does not use it.
func look(path string, self uint32) (identity, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return identity{}, fileError(path, err)
	}
	id := identify(&st)
	return id, id.refusal(path, self)
}

func identify(st *unix.Stat_t) identity {
	return identity{
		dev: uint64(st.Dev), ino: st.Ino, size: st.Size, mtime: st.Mtim, ctime: st.Ctim,
		mode: uint32(st.Mode), uid: st.Uid,
	}
}

// refusal returns why user self does not use such a file.
func (id identity) refusal(path string, self uint32) error {
	kind, perm := id.mode&unix.S_IFMT, id.mode&0o777
	switch {
	case kind == unix.S_IFLNK:
		return because(kek.Invalid, "is a symbolic link: give the path of the file itself")
	case kind != unix.S_IFREG:
		return because(kek.Invalid, "is not a regular file")
	case id.uid != self && id.uid != 0:
		return because(kek.Invalid, "belongs to user %d, who could read and change it: chown %d %s", id.uid, self, path)
	case perm&0o077 != 0:
		return because(kek.Invalid, "mode %04o lets others read or write it: chmod 600 %s", perm, path)
	case id.size > maxFile:
		return because(kek.Invalid, "is %d bytes long, no keyset is larger than %d", id.size, maxFile)
	}
	return nil
}

// read reads and checks the file at path on behalf of user self.
func read(path string, self uint32) (*contents, error) {
	// Looked at before it is opened, as opening is an act of its own on a device.
	if _, err := look(path, self); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fileError(path, err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, fileError(path, err)
	}
	id := identify(&st)
	if err := id.refusal(path, self); err != nil {
		return nil, err
	}
	data := make([]byte, id.size)
	defer clear(data)
	if _, err := io.ReadFull(f, data); err != nil {
		return nil, because(kek.Unavailable, "reading: %w", err)
	}
	c, err := parse(data)
	if err != nil {
		return nil, err
	}
	c.file = id
	return c, nil
}

// parse takes a keyset in Tink's JSON. Its errors never quote the parser's, which
// quote the file.
func parse(data []byte) (*contents, error) {
	if len(bytes.TrimSpace(data)) == 0 {
		return nil, because(kek.Invalid, "is empty: restore the keyset from a backup")
	}
	ks, err := keyset.NewJSONReader(bytes.NewReader(data)).Read()
	if err != nil {
		if _, err := keyset.NewJSONReader(bytes.NewReader(data)).ReadEncrypted(); err == nil {
			return nil, because(kek.Invalid, "is an encrypted keyset: kube-kek needs a keyset in clear")
		}
		return nil, because(kek.Invalid, "is not a whole Tink keyset in JSON: restore it from a backup")
	}
	defer func() {
		for _, k := range ks.GetKey() {
			clear(k.GetKeyData().GetValue())
		}
	}()

	c := &contents{primary: versionName(ks.GetPrimaryKeyId()), status: map[string]tinkpb.KeyStatusType{}}
	enabled := map[uint32]bool{}
	for _, k := range ks.GetKey() {
		version := versionName(k.GetKeyId())
		if _, ok := c.status[version]; ok {
			return nil, because(kek.Invalid, "has two keys with the ID %s", version)
		}
		if k.GetOutputPrefixType() != tinkpb.OutputPrefixType_TINK {
			return nil, because(kek.Invalid, "key %s has the output prefix %s, want TINK, which names the key in every ciphertext", version, k.GetOutputPrefixType())
		}
		switch k.GetStatus() {
		case tinkpb.KeyStatusType_ENABLED:
			enabled[k.GetKeyId()] = true
		case tinkpb.KeyStatusType_DISABLED, tinkpb.KeyStatusType_DESTROYED:
		default:
			return nil, because(kek.Invalid, "key %s has the status %s, want ENABLED, DISABLED or DESTROYED", version, k.GetStatus())
		}
		c.status[version] = k.GetStatus()
	}
	if _, ok := c.status[c.primary]; !ok {
		return nil, because(kek.Invalid, "has no primary key")
	}

	// Tink takes no keyset whose primary is disabled, and the other keys must
	// open what they wrapped. Wrap refuses by the status before it comes to the
	// stand-in.
	primaryUsable := enabled[ks.GetPrimaryKeyId()]
	if !primaryUsable {
		for id := range enabled {
			ks.PrimaryKeyId = id
		}
	}
	if len(enabled) == 0 {
		return c, nil
	}
	handle, err := insecurecleartextkeyset.Read(parsed{ks})
	if err != nil {
		return nil, because(kek.Invalid, "holds a key that is damaged or that this version of Tink does not know")
	}
	if c.aead, err = aead.New(handle); err != nil {
		return nil, because(kek.Invalid, "holds a key that is not for AEAD: make a keyset with kube-kek keyset create")
	}
	if primaryUsable {
		c.handle = handle
	}
	return c, nil
}

// parsed is a keyset.Reader of a keyset that has been read.
type parsed struct{ keyset *tinkpb.Keyset }

func (p parsed) Read() (*tinkpb.Keyset, error) { return p.keyset, nil }

func (p parsed) ReadEncrypted() (*tinkpb.EncryptedKeyset, error) {
	return nil, because(kek.Invalid, "is a keyset in clear")
}

func versionName(keyID uint32) string { return strconv.FormatUint(uint64(keyID), 10) }

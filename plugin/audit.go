package plugin

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// maxUID is how much of a request's UID is kept, in runes. kube-apiserver sends
// a UUID of 36; anything else on the socket may send what it likes.
const maxUID = 64

// AuditEntry is one line of the audit log, as JSON.
type AuditEntry struct {
	Time    time.Time `json:"time"`   // when the request came, UTC
	UID     string    `json:"uid"`    // of the request; kube-apiserver logs it with the object's name at -v=6
	Method  string    `json:"method"` // Encrypt or Decrypt
	KeyID   string    `json:"key_id,omitempty"`
	Outcome string    `json:"outcome"` // "ok", or the kek.Kind of the error
	Code    string    `json:"code"`    // gRPC's name of the answer's code

	DurationSeconds float64 `json:"duration_seconds"`

	// KMSRequestIDs are the KEK's home's own request IDs of the calls that the
	// request caused: none where a local KEK was in memory.
	KMSRequestIDs []string `json:"kms_request_ids,omitempty"`
}

// AuditLog appends a line for each Encrypt and Decrypt to a file. A line is in
// the kernel's hands before the answer leaves, so a crash of the daemon loses
// none; a crash of the node may lose the last ones, since waiting for the disk
// would cost each request milliseconds.
type AuditLog struct {
	path     string
	required bool

	mu   sync.Mutex
	file *os.File // nil where it could not be reopened
	torn bool     // the file ends in a part of a line
}

// NewAuditLog opens the file at an absolute path, and makes it with mode 0600
// where there is none. It refuses a symbolic link, anything but a regular file,
// a file that group or others may write to, and one that belongs to another
// user than ours and root. required says whether an operation whose line cannot
// be written is refused. Where it is not, a log that cannot be opened is returned
// beside the error: each Write tries again.
func NewAuditLog(path string, required bool) (*AuditLog, error) {
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("audit log %q: the path must be absolute", path)
	}
	a := &AuditLog{path: path, required: required}
	err := a.open()
	if err != nil && required {
		return nil, err
	}
	return a, err
}

// Required reports whether operations are refused while no line can be written.
func (a *AuditLog) Required() bool { return a.required }

// Write appends one line with one write(2). A line that was written in part is
// an error; the line after it begins on a fresh one.
func (a *AuditLog) Write(e AuditEntry) error {
	e.Time = e.Time.UTC()
	line, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("writing audit log %s: %w", a.path, err)
	}
	line = append(line, '\n')

	a.mu.Lock()
	defer a.mu.Unlock()
	if a.file != nil && unlinked(a.file) {
		a.close() // lines written to it would be nowhere
	}
	if a.file == nil {
		if err := a.open(); err != nil {
			return err
		}
	}
	if a.torn {
		line = append([]byte{'\n'}, line...)
	}
	n, err := a.file.Write(line)
	if n > 0 {
		a.torn = line[n-1] != '\n'
	}
	if err != nil {
		return fmt.Errorf("writing audit log %s: %w", a.path, err)
	}
	return nil
}

// Reopen opens the path again, for after the file was moved away (SIGHUP,
// logrotate). Where that fails, the next Write tries again.
func (a *AuditLog) Reopen() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.close()
	return a.open()
}

// Close closes the file. A Write after it opens it again.
func (a *AuditLog) Close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.close()
}

func (a *AuditLog) close() error {
	if a.file == nil {
		return nil
	}
	err := a.file.Close()
	a.file = nil
	return err
}

// open is called with mu held, or before anyone else has a.
func (a *AuditLog) open() error {
	// O_NONBLOCK keeps a FIFO from stopping us before it is refused.
	const flags = os.O_RDWR | os.O_APPEND | os.O_CREATE | unix.O_NOFOLLOW | unix.O_NONBLOCK
	f, err := os.OpenFile(a.path, flags, 0o600)
	if err != nil {
		return fmt.Errorf("opening audit log: %w", err)
	}
	torn, err := checkAuditFile(f)
	if err != nil {
		f.Close()
		return fmt.Errorf("opening audit log %s: %w", a.path, err)
	}
	a.file, a.torn = f, torn
	return nil
}

// unlinked reports whether a file was deleted under us.
func unlinked(f *os.File) bool {
	var st unix.Stat_t
	return unix.Fstat(int(f.Fd()), &st) == nil && st.Nlink == 0
}

// checkAuditFile reports whether f ends in a part of a line, left by a crash.
func checkAuditFile(f *os.File) (torn bool, err error) {
	info, err := f.Stat()
	if err != nil {
		return false, err
	}
	if !info.Mode().IsRegular() {
		return false, fmt.Errorf("%s is not a regular file", info.Mode())
	}
	if err := checkOwnerAndMode(info); err != nil {
		return false, err
	}
	if info.Size() == 0 {
		return false, nil
	}
	last := make([]byte, 1)
	if _, err := f.ReadAt(last, info.Size()-1); err != nil {
		return false, err
	}
	return last[0] != '\n', nil
}

// checkOwnerAndMode refuses what another user could have put there or may change.
func checkOwnerAndMode(info fs.FileInfo) error {
	if perm := info.Mode().Perm(); perm&0o022 != 0 {
		return fmt.Errorf("mode %#o lets group or others write; use chmod go-w", perm)
	}
	if uid := ownerOf(info); uid != 0 && uid != uint32(os.Geteuid()) {
		return fmt.Errorf("it belongs to UID %d, not to root or us (UID %d)", uid, os.Geteuid())
	}
	return nil
}

// clip cuts s to so many runes.
func clip(s string, runes int) string {
	for i := range s {
		if runes == 0 {
			return s[:i]
		}
		runes--
	}
	return s
}

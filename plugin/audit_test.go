package plugin_test

import (
	"context"
	"encoding/json"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	v2 "k8s.io/kms/apis/v2"

	"github.com/kube-kek/kube-kek/kek"
	"github.com/kube-kek/kube-kek/kek/localkek"
	"github.com/kube-kek/kube-kek/plugin"
)

func newAudit(t *testing.T, path string, required bool) *plugin.AuditLog {
	t.Helper()
	a, err := plugin.NewAuditLog(path, required)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	return a
}

// auditLines returns the lines of an audit log, times and durations taken out.
func auditLines(t *testing.T, path string) []map[string]any {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var lines []map[string]any
	for line := range strings.Lines(string(data)) {
		var got map[string]any
		if err := json.Unmarshal([]byte(line), &got); err != nil {
			t.Fatalf("line %q: %v", line, err)
		}
		stamp, _ := got["time"].(string)
		if _, err := time.Parse(time.RFC3339Nano, stamp); err != nil || !strings.HasSuffix(stamp, "Z") {
			t.Errorf("time %q is not RFC 3339 in UTC", stamp)
		}
		if d, ok := got["duration_seconds"].(float64); !ok || d < 0 {
			t.Errorf("duration %v", got["duration_seconds"])
		}
		delete(got, "time")
		delete(got, "duration_seconds")
		lines = append(lines, got)
	}
	return lines
}

func TestEachEncryptAndDecryptHasALine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	ring := &fakeRing{}
	svc := plugin.NewService(plugin.Config{Ring: ring, Audit: newAudit(t, path, true)})
	svc.Status(t.Context(), &v2.StatusRequest{}) // has none
	svc.Encrypt(t.Context(), &v2.EncryptRequest{Plaintext: []byte("seed"), Uid: "uid-1"})
	ring.open = func(ctx context.Context, _ localkek.Sealed) ([]byte, error) {
		kek.RecordCall(ctx, "aws-1")
		kek.RecordCall(ctx, "aws-2")
		return nil, kek.KeyDisabled
	}
	svc.Decrypt(t.Context(), &v2.DecryptRequest{Ciphertext: []byte("c"), KeyId: "fake:key@1", Uid: "\"\n" + strings.Repeat("ü", 70)})

	want := []map[string]any{
		{"uid": "uid-1", "method": "Encrypt", "key_id": "fake:key@1", "outcome": "ok", "code": "OK"},
		{"uid": "\"\n" + strings.Repeat("ü", 62), "method": "Decrypt", "key_id": "fake:key@1", "outcome": "key disabled", "code": "FailedPrecondition",
			"kms_request_ids": []any{"aws-1", "aws-2"}},
	}
	if diff := cmp.Diff(want, auditLines(t, path)); diff != "" {
		t.Errorf("lines (-want +got):\n%s", diff)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode() != 0o600 {
		t.Errorf("mode %s, want 0600", info.Mode())
	}
}

// limitFileSize makes writes fail beyond so many bytes of a file, as a full disk
// does, until the returned function is called.
func limitFileSize(t *testing.T, bytes int64) (lift func()) {
	t.Helper()
	signal.Ignore(syscall.SIGXFSZ)
	t.Cleanup(func() { signal.Reset(syscall.SIGXFSZ) })
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: uint64(bytes), Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &old); err != nil {
			t.Fatal(err)
		}
	}
}

func TestWhereTheLineIsRequiredAFullDiskRefusesTheOperation(t *testing.T) {
	for _, required := range []bool{true, false} {
		path := filepath.Join(t.TempDir(), "audit.log")
		var log logBuffer
		seed := []byte("the-seed")
		svc := plugin.NewService(plugin.Config{
			Audit: newAudit(t, path, required), Logger: log.logger(),
			Ring: &fakeRing{open: func(context.Context, localkek.Sealed) ([]byte, error) { return seed, nil }},
		})
		lift := limitFileSize(t, 0)
		enc, encErr := svc.Encrypt(t.Context(), &v2.EncryptRequest{Plaintext: []byte("seed")})
		dec, decErr := svc.Decrypt(t.Context(), &v2.DecryptRequest{Ciphertext: []byte("c"), KeyId: "k"})
		lift()
		if log.count("the audit log is not written") != 1 {
			t.Errorf("required %t: want one line of log about two failures:\n%s", required, log.String())
		}
		if !required {
			if encErr != nil || decErr != nil {
				t.Errorf("not required, but refused: %v, %v", encErr, decErr)
			}
			continue
		}
		for _, err := range []error{encErr, decErr} {
			if got := status.Convert(err); got.Code() != codes.Unavailable || !strings.Contains(got.Message(), "file too large") {
				t.Errorf("required, but answered with %v", err)
			}
		}
		if enc != nil || dec != nil || string(seed) == "the-seed" {
			t.Error("a refused operation still returned its result, or left the seed uncleared")
		}
		if _, err := svc.Encrypt(t.Context(), &v2.EncryptRequest{Plaintext: []byte("seed")}); err != nil {
			t.Errorf("with room on the disk again: %v", err)
		}
	}
}

func TestALineTornByAFullDiskIsFollowedByAFreshOne(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	a := newAudit(t, path, true)
	write := func(uid string) error { return a.Write(plugin.AuditEntry{UID: uid, Method: "Encrypt", Outcome: "ok"}) }
	if err := write("first"); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	lift := limitFileSize(t, info.Size()+20)
	err = write("torn")
	lift()
	if err == nil {
		t.Fatal("a partial write was no error")
	}
	for _, uid := range []string{"second", "third"} {
		if err := write(uid); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(data), "\n")
	if len(lines) != 5 || len(lines[1]) != 20 || !strings.Contains(lines[2], "second") || !json.Valid([]byte(lines[2])) || !json.Valid([]byte(lines[3])) {
		t.Errorf("want a whole line, 20 bytes of one, and two whole lines, got:\n%s", data)
	}
}

func TestALineTornByACrashIsFollowedByAFreshOne(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	if err := os.WriteFile(path, []byte(`{"uid":"to`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := newAudit(t, path, true).Write(plugin.AuditEntry{}); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(string(data), "{\"uid\":\"to\n{") {
		t.Errorf("got:\n%s", data)
	}
}

func TestReopenFollowsARotatedFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	a := newAudit(t, path, true)
	write := func(uid string) {
		t.Helper()
		if err := a.Write(plugin.AuditEntry{UID: uid}); err != nil {
			t.Fatal(err)
		}
	}
	write("before")
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	write("moved") // still the old file
	if err := a.Reopen(); err != nil {
		t.Fatal(err)
	}
	write("after")
	if old, now := len(auditLines(t, path+".1")), len(auditLines(t, path)); old != 2 || now != 1 {
		t.Errorf("%d lines in the old file and %d in the new one, want 2 and 1", old, now)
	}

	// What cannot be reopened is tried again by the next line.
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := a.Reopen(); err == nil {
		t.Fatal("reopened a file that anyone can write to")
	}
	if err := a.Write(plugin.AuditEntry{}); err == nil {
		t.Fatal("wrote to a file that anyone can write to")
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	write("again")
}

func TestFilesThatAreNoPlaceForAnAuditLogAreRefused(t *testing.T) {
	for _, tt := range []struct {
		name string
		make func(path string) error
		want string
	}{
		{"a symbolic link", func(p string) error { return os.Symlink(p+".other", p) }, "too many levels of symbolic links"},
		{"a directory", func(p string) error { return os.Mkdir(p, 0o700) }, "is a directory"},
		{"a FIFO", func(p string) error { return unix.Mkfifo(p, 0o600) }, "not a regular file"},
		{"a file that its group can write to", writable(0o620), "group or others write"},
		{"a file that all can write to", writable(0o602), "group or others write"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "audit.log")
			if err := tt.make(path); err != nil {
				t.Fatal(err)
			}
			if _, err := plugin.NewAuditLog(path, true); err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), path) {
				t.Errorf("got %v, want an error with %q and the path", err, tt.want)
			}
		})
	}
	for path, want := range map[string]string{
		"audit.log": "must be absolute",
		"/dev/full": "not a regular file",
		filepath.Join(t.TempDir(), "none", "audit.log"): "no such file",
	} {
		if _, err := plugin.NewAuditLog(path, true); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want an error with %q", path, err, want)
		}
	}
}

func writable(mode fs.FileMode) func(string) error {
	return func(path string) error {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			return err
		}
		return os.Chmod(path, mode)
	}
}

func TestAFileThatWasDeletedIsMadeAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	a, err := plugin.NewAuditLog(path, true)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	for range 2 {
		if err := a.Write(plugin.AuditEntry{Method: "Encrypt"}); err != nil {
			t.Fatal(err)
		}
		if content, err := os.ReadFile(path); err != nil || len(content) == 0 {
			t.Errorf("the line is not in the file: %v", err)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

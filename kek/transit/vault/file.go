package vault

import (
	"bytes"
	"crypto/tls"
	"io"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"github.com/kube-kek/kube-kek/kek"
)

// What a file's mode must not have. Kubernetes writes a pod's tokens readable by
// all in that pod, so those need only be safe from change.
const (
	private      fs.FileMode = 0o027
	unchangeable fs.FileMode = 0o022
)

// readLine returns the one line in a file, a token, and which file that was.
func readLine(path string, not fs.FileMode) (string, fs.FileInfo, error) {
	data, info, err := readFile(path, not)
	line := string(bytes.TrimSpace(data))
	if err == nil && (line == "" || strings.ContainsFunc(line, func(r rune) bool { return r <= ' ' || r > '~' })) {
		err = Because(kek.Unauthenticated, "%s does not hold one line of printable ASCII", path)
	}
	return line, info, err
}

// readFile reads a file of credentials. What is wrong with it is not the server's
// word: it is Unauthenticated.
func readFile(path string, not fs.FileMode) ([]byte, fs.FileInfo, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a pipe must not hold us up
	if err != nil {
		return nil, nil, Because(kek.Unauthenticated, "%w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, nil, Because(kek.Unauthenticated, "%w", err)
	}
	switch mode := info.Mode(); {
	case !mode.IsRegular():
		return nil, nil, Because(kek.Unauthenticated, "%s is not a regular file", path)
	case mode&not != 0:
		return nil, nil, Because(kek.Unauthenticated, "%s has mode %04o, which opens it to others: chmod 600 %s", path, mode.Perm(), path)
	}
	data, err := io.ReadAll(io.LimitReader(f, 64<<10))
	if err != nil {
		return nil, nil, Because(kek.Unauthenticated, "%w", err)
	}
	return data, info, nil
}

// keyPair reads a certificate and its key.
func keyPair(cert, key string) (*tls.Certificate, error) {
	keyPEM, _, err := readFile(key, private)
	if err != nil {
		return nil, err
	}
	defer clear(keyPEM)
	certPEM, _, err := readFile(cert, unchangeable)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, Because(kek.Unauthenticated, "client certificate %s: %w", cert, err)
	}
	return &pair, nil
}

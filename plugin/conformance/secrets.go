package conformance

import (
	"encoding/base64"
	"encoding/hex"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// blockSize is how many bytes of a plaintext in a row are a leak. Blocks are cut
// at multiples of it, so 15 bytes anywhere hold one.
const blockSize = 8

type block [blockSize]byte

// secrets are the plaintexts that a run has sent.
type secrets struct {
	mu     sync.Mutex
	blocks map[block]struct{}
}

func newSecrets() *secrets { return &secrets{blocks: map[block]struct{}{}} }

// add remembers the first KiB of a plaintext.
func (s *secrets) add(plaintext []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := 0; i+blockSize <= min(len(plaintext), 1024); i += blockSize {
		s.blocks[block(plaintext[i:])] = struct{}{}
	}
}

// shownIn tells whether data holds a part of a plaintext, and how it is written.
func (s *secrets) shownIn(data []byte) (how string, shown bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, spelling := range spellings {
		for _, b := range spelling.read(data) {
			for i := 0; i+blockSize <= len(b); i++ {
				if _, ok := s.blocks[block(b[i:])]; ok {
					return spelling.name, true
				}
			}
		}
	}
	return "", false
}

// only returns secrets that hold one plaintext.
func only(plaintext []byte) *secrets {
	s := newSecrets()
	s.add(plaintext)
	return s
}

// spellings are the ways in which bytes get into texts.
var spellings = []struct {
	name string
	read func([]byte) [][]byte
}{
	{"as it is", func(b []byte) [][]byte { return [][]byte{b} }},
	{"in hex", func(b []byte) [][]byte {
		var out [][]byte
		for _, run := range hexRun.FindAll(b, -1) {
			for skip := range 2 {
				decoded, _ := hex.DecodeString(string(run[skip : len(run)-(len(run)-skip)%2]))
				out = append(out, decoded)
			}
		}
		return out
	}},
	{"in base64", func(b []byte) [][]byte {
		var out [][]byte
		for _, run := range base64Run.FindAll(b, -1) {
			text := strings.NewReplacer("-", "+", "_", "/").Replace(string(run))
			for skip := range 4 {
				whole := text[skip : len(text)-(len(text)-skip)%4]
				decoded, _ := base64.StdEncoding.DecodeString(whole)
				out = append(out, decoded)
			}
		}
		return out
	}},
	{"as a list of numbers", func(b []byte) [][]byte {
		var out [][]byte
		for _, run := range numberRun.FindAllString(string(b), -1) {
			var decoded []byte
			for _, n := range strings.FieldsFunc(run, func(r rune) bool { return r == ' ' || r == ',' }) {
				v, _ := strconv.Atoi(n)
				decoded = append(decoded, byte(v))
			}
			out = append(out, decoded)
		}
		return out
	}},
}

var (
	hexRun    = regexp.MustCompile(`[0-9A-Fa-f]{16,}`)
	base64Run = regexp.MustCompile(`[0-9A-Za-z+/_-]{12,}`)
	numberRun = regexp.MustCompile(`(?:\d{1,3}[ ,]+){7,}\d{1,3}`)
)

// credentials are patterns of what must not be told to anyone who can read etcd
// or a log.
var credentials = []struct {
	what    string
	pattern *regexp.Regexp
}{
	{"an AWS access key ID", regexp.MustCompile(`\b(?:AKIA|ASIA)[0-9A-Z]{16}\b`)},
	{"a private key", regexp.MustCompile(`-----BEGIN [A-Z ]*PRIVATE KEY`)},
	{"a Vault or OpenBao token", regexp.MustCompile(`\b(?:hv[sbr]|s)\.[0-9A-Za-z_-]{24,}`)},
	{"a Google access token", regexp.MustCompile(`\bya29\.[0-9A-Za-z_-]{16,}`)},
	{"a JSON web token", regexp.MustCompile(`\beyJ[0-9A-Za-z_-]{8,}\.eyJ[0-9A-Za-z_-]{8,}\.`)},
	{"a password in a URL", regexp.MustCompile(`[a-z][a-z0-9+.-]*://[^/\s:@]+:[^/\s@]+@`)},
	{"a shared access signature", regexp.MustCompile(`(?i)[?&]sig=[0-9A-Za-z%+/=]{16,}`)},
	// A value with a digit in it, right behind the name: "decrypting secret: bad
	// input" is prose, and "pkcs11:token=my-token;object=kek" a URI (RFC 7512).
	{"a named secret", regexp.MustCompile(`(?i)(?:password|passwd|secret|token|api[_-]?key)(?:["']\s*:\s*["']|[=:]["']?)[^\s"'&;]*[0-9][^\s"'&;]{5,}`)},
}

// looksSecret returns what in a text looks like a credential.
func looksSecret(text string) (what string, found bool) {
	for _, c := range credentials {
		if c.pattern.MatchString(text) {
			return c.what, true
		}
	}
	return "", false
}

// stack is what a stack trace of a usual language has.
var stack = regexp.MustCompile(`goroutine \d+ \[|\.go:\d+|runtime/debug\.Stack|panic:|runtime error:|Traceback \(most recent|File "[^"]+", line \d+|\bat [\w.$]+\([\w.]+:\d+\)|stack backtrace:|\.rs:\d+:\d+|/usr/src/`)

// messages keeps each different error text of a run, up to a bound.
type messages struct {
	mu    sync.Mutex
	texts map[string]string // text to the method that answered it
	calls int               // that failed
}

// maxMessages bounds the texts kept: error texts hold UIDs and times.
const maxMessages = 5000

func (m *messages) add(method string, err error) {
	st, ok := status.FromError(err)
	if err == nil || !ok || st.Code() == codes.Canceled {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls++
	if m.texts == nil {
		m.texts = map[string]string{}
	}
	if len(m.texts) < maxMessages {
		m.texts[st.Message()] = method[strings.LastIndexByte(method, '/')+1:]
	}
}

// printable makes a plugin's text safe for a terminal and short.
func printable(text string) string {
	const most = 600
	if len(text) > most {
		text = text[:most] + "…"
	}
	return strings.Map(func(r rune) rune {
		if strconv.IsPrint(r) || r == '\n' {
			return r
		}
		return '·'
	}, text)
}

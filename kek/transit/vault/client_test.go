package vault_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/kube-kek/kube-kek/kek"
	"github.com/kube-kek/kube-kek/kek/transit/vault"
)

// The client's manners with a real Vault are tested in e2e/homes. Here are the
// faults that a real Vault does not have.

const (
	lookupSelf = "GET /v1/auth/token/lookup-self"
	secret     = "GET /v1/secret/thing"
	living     = `{"data":{"ttl":3600}}`
)

// server answers by path, and counts. What has no handler is a 404.
type server struct {
	*httptest.Server
	mu    sync.Mutex
	paths map[string]http.HandlerFunc
	calls map[string]int
}

// start starts a server that takes the token in the environment.
func start(t *testing.T) *server {
	s := &server{paths: map[string]http.HandlerFunc{}, calls: map[string]int{}}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	s.answer(lookupSelf, 200, living)
	clearEnv(t)
	t.Setenv("VAULT_TOKEN", "a-token")
	return s
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := r.Method + " " + r.URL.Path
	s.mu.Lock()
	s.calls[path]++
	h, ok := s.paths[path]
	s.mu.Unlock()
	if !ok {
		http.NotFound(w, r)
		return
	}
	h(w, r)
}

func (s *server) handle(path string, h http.HandlerFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.paths[path] = h
}

func (s *server) answer(path string, status int, body string) {
	s.handle(path, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		io.WriteString(w, body)
	})
}

func (s *server) counted(path string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls[path]
}

func clearEnv(t *testing.T) {
	for _, pair := range os.Environ() {
		if name, _, _ := strings.Cut(pair, "="); strings.HasPrefix(name, "VAULT_") || strings.HasPrefix(name, "BAO_") {
			t.Setenv(name, "")
			os.Unsetenv(name)
		}
	}
}

func client(t *testing.T, c vault.Config) *vault.Client {
	t.Helper()
	client, err := vault.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

// read reads the secret/thing.
func read(ctx context.Context, c *vault.Client) error {
	var out map[string]any
	return c.Read(ctx, kek.OpCurrent, "secret/thing", &out)
}

func want(t *testing.T, err error, kind kek.Kind, words ...string) {
	t.Helper()
	if err == nil || kek.KindOf(err) != kind {
		t.Errorf("got %v, want %v", err, kind)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q does not say %q", err, w)
		}
	}
}

func TestWhatVaultAnswersIsSortedIntoKinds(t *testing.T) {
	s := start(t)
	c := client(t, vault.Config{Address: s.URL})
	for _, a := range []struct {
		name   string
		status int
		body   string
		read   kek.Kind
		unwrap kek.Kind
	}{
		{"denied", 403, `{"errors":["permission denied"]}`, kek.Denied, kek.Denied},
		{"not found", 404, `{"errors":[]}`, kek.KeyNotFound, kek.KeyNotFound},
		{"a mount of K/V", 404, `{"errors":null,"data":null,"warnings":["Invalid path for a versioned K/V secrets engine."]}`, kek.KeyNotFound, kek.KeyNotFound},
		{"no such key", 400, `{"errors":["encryption key not found"]}`, kek.KeyNotFound, kek.KeyNotFound},
		{"a version to come", 400, `{"errors":["invalid ciphertext: version is too new"]}`, kek.KeyNotFound, kek.KeyNotFound},
		{"a version that is gone", 400, `{"errors":["no such key version"]}`, kek.KeyNotFound, kek.KeyNotFound},
		{"a version below the minimum", 400, `{"errors":["ciphertext or signature version is disallowed by policy (too old)"]}`, kek.KeyDisabled, kek.KeyDisabled},
		{"a soft-deleted key", 400, `{"errors":["refusing to use soft-deleted key"]}`, kek.KeyDisabled, kek.KeyDisabled},
		{"another binding", 400, `{"errors":["cipher: message authentication failed"]}`, kek.Invalid, kek.Corrupt},
		{"a method that is not there", 405, `{"errors":["unsupported operation"]}`, kek.Invalid, kek.Invalid},
		{"a quota", 429, `{"errors":["rate limit quota exceeded"]}`, kek.Throttled, kek.Throttled},
		{"a standby that lags", 412, `{"errors":["required index state not present"]}`, kek.Unavailable, kek.Unavailable},
		{"a recovery standby", 472, `{"errors":["x"]}`, kek.Unavailable, kek.Unavailable},
		{"a performance standby", 473, `{"errors":["x"]}`, kek.Unavailable, kek.Unavailable},
		{"an error within", 500, `{"errors":["internal error"]}`, kek.Unavailable, kek.Unavailable},
		{"a backend of Vault that fails", 502, `{"errors":["x"]}`, kek.Unavailable, kek.Unavailable},
		{"sealed", 503, `{"errors":["Vault is sealed"]}`, kek.Unavailable, kek.Unavailable},
		{"a status that nobody knows", 418, `{"errors":["x"]}`, kek.Unknown, kek.Unknown},
		{"a proxy's page", 403, `<html>Forbidden</html>`, kek.Unavailable, kek.Unavailable},
		{"a proxy's not found", 404, `404 page not found`, kek.Unavailable, kek.Unavailable},
		{"a refusal in another form", 403, `{"message":"no"}`, kek.Unavailable, kek.Unavailable},
		{"not found in another form", 404, `{"message":"no"}`, kek.Unavailable, kek.Unavailable},
		{"success with garbage", 200, `QUJDRA==`, kek.Unavailable, kek.Unavailable},
		{"success with data of another form", 200, `{"data":[1]}`, kek.Unavailable, kek.Unavailable},
		{"success with nothing in it", 200, `{}`, kek.Unavailable, kek.Unavailable},
		{"success without a body", 204, ``, kek.Unavailable, kek.Unavailable},
		{"a redirect to nowhere", 301, ``, kek.Unavailable, kek.Unavailable},
		{"an old server", 200, `{"data":{},"warnings":["Endpoint ignored these unrecognized parameters: [associated_data]"]}`, kek.Invalid, kek.Invalid},
	} {
		t.Run(a.name, func(t *testing.T) {
			s.answer(secret, a.status, a.body)
			s.answer("POST /v1/secret/thing", a.status, a.body)
			want(t, read(t.Context(), c), a.read)
			err := c.Update(t.Context(), kek.OpUnwrap, "secret/thing", map[string]string{}, &map[string]any{})
			want(t, err, a.unwrap)
			if s := err.Error(); strings.Contains(s, "html") || strings.Contains(s, "URL:") {
				t.Errorf("the error has more than Vault's words: %s", s)
			}
		})
	}
}

func TestAThrottledCallSaysWhenToTryAgain(t *testing.T) {
	s := start(t)
	s.handle(secret, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "3")
		w.WriteHeader(429)
		io.WriteString(w, `{"errors":["slow down"]}`)
	})
	var e *kek.Error
	if err := read(t.Context(), client(t, vault.Config{Address: s.URL})); !errors.As(err, &e) || e.RetryAfter != 3*time.Second {
		t.Errorf("%v, RetryAfter %v", err, e.RetryAfter)
	}
}

func TestACallIsTriedOnce(t *testing.T) {
	s := start(t)
	t.Setenv("VAULT_MAX_RETRIES", "5")
	s.answer(secret, 500, `{"errors":["x"]}`)
	want(t, read(t.Context(), client(t, vault.Config{Address: s.URL})), kek.Unavailable)
	if n := s.counted(secret); n != 1 {
		t.Errorf("%d calls", n)
	}
}

func TestAStandbysRedirectIsFollowed(t *testing.T) {
	active, standby := start(t), start(t)
	active.answer(secret, 200, `{"data":{}}`)
	standby.handle(secret, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, active.URL+r.URL.Path, http.StatusTemporaryRedirect)
	})
	if err := read(t.Context(), client(t, vault.Config{Address: standby.URL})); err != nil {
		t.Error(err)
	}
}

func TestNoAnswerIsUnavailable(t *testing.T) {
	s := start(t)
	c := client(t, vault.Config{Address: s.URL})
	s.handle(secret, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	want(t, read(t.Context(), c), kek.Unavailable, "no answer", "EOF")
	s.handle(secret, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "100")
		io.WriteString(w, `{"data":{}`)
	})
	want(t, read(t.Context(), c), kek.Unavailable, "no answer", "EOF")
	s.handle(secret, func(w http.ResponseWriter, _ *http.Request) {
		for range 40 {
			w.Write(make([]byte, 1<<20))
		}
	})
	want(t, read(t.Context(), c), kek.Unavailable, "not one of Vault")
	s.Close()
	want(t, read(t.Context(), c), kek.Unavailable, "connection refused")
}

func TestACallThatHangsEndsWithItsContext(t *testing.T) {
	s := start(t)
	c := client(t, vault.Config{Address: s.URL})
	for _, path := range []string{lookupSelf, secret} { // the login first, then the call
		arrived, release := make(chan struct{}, 1), make(chan struct{})
		s.handle(path, func(w http.ResponseWriter, _ *http.Request) {
			arrived <- struct{}{}
			<-release
			io.WriteString(w, living)
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- read(ctx, c) }()
		<-arrived
		cancel()
		if err := <-done; kek.KindOf(err) != kek.Unavailable || !errors.Is(err, context.Canceled) {
			t.Errorf("%s hangs: %v", path, err)
		}
		close(release) // the login that nobody waits for any more goes on
	}
	if n := s.counted(lookupSelf); n != 1 {
		t.Errorf("%d logins, want 1", n)
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	want(t, read(over, c), kek.Unavailable, "context canceled")
}

func TestA403OfATokenThatEndedIsNotAWordOnTheKey(t *testing.T) {
	const denied, dead = `{"errors":["permission denied"]}`, `{"errors":["2 errors occurred: * permission denied * invalid token"]}`
	for _, c := range []struct {
		name, lookup string // lookup-self is answered so, after the first login
		status       int
		kind         kek.Kind
		permission   string
	}{
		{"a token that can look itself up may not", living, 200, kek.Denied, "read on secret/thing"},
		{"a token that cannot has ended", dead, 403, kek.Unauthenticated, ""},
		{"who cannot say leaves it open", `{"errors":["sealed"]}`, 503, kek.Unavailable, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := start(t)
			s.answer(secret, 200, `{"data":{}}`)
			client := client(t, vault.Config{Address: s.URL})
			if err := read(t.Context(), client); err != nil {
				t.Fatal(err)
			}
			s.answer(secret, 403, denied)
			s.answer(lookupSelf, c.status, c.lookup)
			err := read(t.Context(), client)
			want(t, err, c.kind)
			if e := err.(*kek.Error); e.Permission != c.permission {
				t.Errorf("needs %q", e.Permission)
			}
		})
	}
}

func TestTheIdentityIsTheTokens(t *testing.T) {
	s := start(t)
	s.answer(lookupSelf, 200, `{"data":{"ttl":1,"display_name":"jwt-node","path":"auth/jwt/login","entity_id":"e-1","meta":{"role":"kek","env":"prod"}}}`)
	got, err := client(t, vault.Config{Address: s.URL}).Identity(t.Context())
	if diff := cmp.Diff("jwt-node by auth/jwt/login, entity e-1, env prod, role kek", got); diff != "" || err != nil {
		t.Error(diff, err)
	}
}

package vault

import (
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/kube-kek/kube-kek/kek"
)

func TestAFileOfCredentialsIsChecked(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		name, content string
		mode, not     fs.FileMode
		want          string // in the error, if there is one
	}{
		{"a secret of ours", "token", 0o600, private, ""},
		{"a secret of ours and a group", "token", 0o640, private, ""},
		{"a secret and its line's end", "token\r\n", 0o400, private, ""},
		{"a secret that all may read", "token", 0o644, private, "mode 0644, which opens it to others: chmod 600 " + dir},
		{"a secret that all may enter", "token", 0o601, private, "chmod 600"},
		{"a secret that a group may write", "token", 0o660, private, "chmod 600"},
		{"a pod's token that all may read", "token", 0o644, unchangeable, ""},
		{"a pod's token that a group may write", "token", 0o664, unchangeable, "chmod 600"},
		{"a pod's token that all may write", "token", 0o646, unchangeable, "chmod 600"},
		{"nothing", "", 0o600, private, "one line"},
		{"two lines", "token\ntoken", 0o600, private, "one line"},
		{"bytes", "tok\x00en", 0o600, private, "one line"},
		{"a text", "tokén", 0o600, private, "one line"},
		{"more than a token has", strings.Repeat("token\n", 1<<20), 0o600, private, "one line"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(dir, strings.ReplaceAll(c.name, " ", "-"))
			if err := os.WriteFile(path, []byte(c.content), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(path, c.mode); err != nil {
				t.Fatal(err)
			}
			line, info, err := readLine(path, c.not)
			switch {
			case c.want == "" && (err != nil || line != "token" || info == nil):
				t.Errorf("%q, %v", line, err)
			case c.want != "" && (kek.KindOf(err) != kek.Unauthenticated || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), path)):
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
	pipe := filepath.Join(dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link") // as Kubernetes and agents have them
	if err := os.Symlink("a-secret-of-ours", link); err != nil {
		t.Fatal(err)
	}
	if line, _, err := readLine(link, private); err != nil || line != "token" {
		t.Errorf("a link: %q, %v", line, err)
	}
	for path, want := range map[string]string{pipe: "not a regular file", dir: "not a regular file", dir + "/none": "no such file"} {
		if _, _, err := readLine(path, private); kek.KindOf(err) != kek.Unauthenticated || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
}

// logins is a server of AppRole logins, each of which gives a token with another
// number. What is nil works.
type logins struct {
	login, renew http.HandlerFunc
	lease, n     int32
	renewals     atomic.Int32
	revoked      atomic.Int32 // tokens up to this number are refused
}

func (l *logins) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var n int32
	fmt.Sscanf(r.Header.Get("X-Vault-Token"), "token-%d", &n)
	switch path := strings.TrimPrefix(r.URL.Path, "/v1/"); {
	case path == "auth/approle/login" && l.login != nil:
		l.login(w, r)
	case path == "auth/approle/login":
		give(w, atomic.AddInt32(&l.n, 1), l.lease)
	case n == 0 || n <= l.revoked.Load():
		w.WriteHeader(403)
		io.WriteString(w, `{"errors":["permission denied","invalid token"]}`)
	case path == "auth/token/renew-self":
		l.renewals.Add(1)
		if l.renew != nil {
			l.renew(w, r)
			return
		}
		give(w, n, l.lease)
	default:
		io.WriteString(w, `{"data":{}}`)
	}
}

func give(w http.ResponseWriter, n, lease int32) {
	json.NewEncoder(w).Encode(map[string]any{"auth": map[string]any{
		"client_token": fmt.Sprintf("token-%d", n), "lease_duration": lease, "renewable": true,
	}})
}

func refuse(status int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		io.WriteString(w, `{"errors":["no"]}`)
	}
}

func (l *logins) client(t *testing.T) *Client {
	t.Helper()
	l.lease = 3600
	s := httptest.NewServer(l)
	t.Cleanup(s.Close)
	c, err := New(Config{Address: s.URL, Auth: Auth{Method: AppRole, RoleID: "role"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func (c *Client) due() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now.renewAt = time.Now()
}

func (c *Client) ended() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now.renewAt, c.now.ends = time.Now(), time.Now()
}

// uses checks that a call succeeds with token number n, after so many renewals.
func (l *logins) uses(t *testing.T, c *Client, n, renewals int32) {
	t.Helper()
	err := c.Read(t.Context(), kek.OpCurrent, "secret/thing", &struct{}{})
	if got, _ := c.held(""); err != nil || got.token != fmt.Sprintf("token-%d", n) || l.renewals.Load() != renewals {
		t.Errorf("%s after %d renewals, %v; want number %d and %d", got.token, l.renewals.Load(), err, n, renewals)
	}
}

func TestATokenIsRenewedAtTwoThirdsAndReplacedAtItsEnd(t *testing.T) {
	var l logins
	c := l.client(t)
	before := time.Now()
	l.uses(t, c, 1, 0)
	if h := c.now; h.renewAt.Before(before.Add(2399*time.Second)) || h.renewAt.After(time.Now().Add(2400*time.Second)) || h.ends.After(time.Now().Add(time.Hour)) {
		t.Errorf("renewed at %v, ends %v", h.renewAt, h.ends)
	}
	l.uses(t, c, 1, 0)
	c.due()
	l.uses(t, c, 1, 1)
	l.uses(t, c, 1, 1)
	c.ended()
	l.uses(t, c, 2, 1)
}

func TestATokenNearItsMaximumIsReplaced(t *testing.T) {
	l := logins{renew: func(w http.ResponseWriter, _ *http.Request) { give(w, 1, 3599) }}
	c := l.client(t)
	l.uses(t, c, 1, 0)
	c.due()
	l.uses(t, c, 2, 1)
}

func TestATokenThatCannotBeRenewedIsReplaced(t *testing.T) {
	for _, status := range []int{400, 403, 500} {
		l := logins{renew: refuse(status)}
		c := l.client(t)
		l.uses(t, c, 1, 0)
		c.due()
		l.uses(t, c, 2, 1)
	}
}

func TestATokenIsUsedToItsEndWhileNoOtherIsToBeHad(t *testing.T) {
	for _, status := range []int{400, 503} {
		l := logins{renew: refuse(status)}
		c := l.client(t)
		l.uses(t, c, 1, 0)
		l.login = refuse(status)
		c.due()
		l.uses(t, c, 1, 1)
		if next := time.Until(c.now.renewAt); next < 14*time.Minute || next > 15*time.Minute {
			t.Errorf("of an hour that is left, the next try is after %v", next)
		}
		l.uses(t, c, 1, 1)
		c.ended()
		err := c.Read(t.Context(), kek.OpCurrent, "secret/thing", &struct{}{})
		want := map[int]kek.Kind{400: kek.Unauthenticated, 503: kek.Unavailable}[status]
		if kek.KindOf(err) != want || !strings.Contains(err.Error(), "logging in to Vault by approle: Vault answers") {
			t.Errorf("got %v, want %v", err, want)
		}
		l.login = nil
		l.uses(t, c, 2, 1)
	}
}

func TestOneLoginIsForAllWhoWait(t *testing.T) {
	var l logins
	c := l.client(t)
	for round := int32(1); round <= 3; round++ {
		var wg sync.WaitGroup
		for range 64 {
			wg.Go(func() {
				if err := c.Read(t.Context(), kek.OpCurrent, "secret/thing", &struct{}{}); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n := atomic.LoadInt32(&l.n); n != round {
			t.Errorf("%d logins, want %d", n, round)
		}
		l.revoked.Store(round)
	}
}

func TestALoginWithoutATokenIsUnauthenticated(t *testing.T) {
	for body, want := range map[string]kek.Kind{
		`{"auth":{"mfa_requirement":{}}}`: kek.Unauthenticated,
		`{"auth":null}`:                   kek.Unauthenticated,
		`{"data":{}}`:                     kek.Unavailable,
		`<html>`:                          kek.Unavailable,
	} {
		l := logins{login: func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, body) }}
		if err := l.client(t).Read(t.Context(), kek.OpCurrent, "secret/thing", &struct{}{}); kek.KindOf(err) != want {
			t.Errorf("%s: %v, want %v", body, err, want)
		}
	}
}

package vault

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/kube-kek/kube-kek/kek"
)

// tokenInfo is what a login, renew-self and lookup-self answer of a token.
type tokenInfo struct {
	Token       string            `json:"client_token"`
	Lease       int               `json:"lease_duration"` // seconds, 0 is for ever
	TTL         int               `json:"ttl"`            // lookup-self's name for what is left of the lease
	Renewable   bool              `json:"renewable"`
	DisplayName string            `json:"display_name"`
	Path        string            `json:"path"`
	EntityID    string            `json:"entity_id"`
	Meta        map[string]string `json:"meta"`
}

// held is the token that calls use.
type held struct {
	token         string
	granted       time.Duration // its life as it was granted last
	renewable     bool
	renewAt, ends time.Time
	file          fs.FileInfo // that it was read from, nil if it was not
}

// forever is the life of a token that does not end.
const forever = 100 * 365 * 24 * time.Hour

// hold counts a token's life from before it was asked for.
func hold(asked time.Time, token string, seconds int, renewable bool, file fs.FileInfo) held {
	life := time.Duration(seconds) * time.Second
	if life <= 0 {
		life, renewable = forever, false
	}
	return held{token, life, renewable, asked.Add(life / 3 * 2), asked.Add(life), file}
}

// Note warns of a token that nobody replaces, empty if there is none.
func (c *Client) Note() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.auth.token != "":
		return "The Vault token is static, from the environment. Log in by kubernetes, jwt, approle or cert."
	case c.now.granted == forever:
		return "The Vault token never ends: whoever gets it has it until someone revokes it. Give it a TTL."
	}
	return ""
}

// token returns a token that is not the one refused. Whoever finds it due renews
// it or logs in for all who wait, and that goes on if its own context ends.
func (c *Client) token(ctx context.Context, refused string) (string, error) {
	if h, usable := c.held(refused); usable && time.Now().Before(h.renewAt) {
		return h.token, nil
	}
	done := c.logins.DoChan("", func() (any, error) {
		h, err := c.obtain(context.WithoutCancel(ctx), refused)
		if err == nil {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.now = h
		}
		return h.token, err
	})
	select {
	case got := <-done:
		token, _ := got.Val.(string)
		return token, got.Err
	case <-ctx.Done():
		return "", Because(kek.Unavailable, "waiting for a login to Vault: %w", ctx.Err())
	}
}

// held returns the token, and whether it lives, is not the one refused, and its
// file, if it has one, is still the same.
func (c *Client) held(refused string) (held, bool) {
	c.mu.Lock()
	h := c.now
	c.mu.Unlock()
	if h.token == "" || h.token == refused || !time.Now().Before(h.ends) {
		return h, false
	}
	if h.file == nil {
		return h, true
	}
	f, err := os.Stat(c.auth.TokenFile)
	return h, err != nil || os.SameFile(f, h.file) && f.Size() == h.file.Size() && f.ModTime().Equal(h.file.ModTime())
}

// obtain renews the token or logs in. If neither can be done, a token that has
// not ended is used on, and the next try is after a quarter of what it has left.
func (c *Client) obtain(ctx context.Context, refused string) (held, error) {
	old, usable := c.held(refused)
	asked := time.Now()
	if usable && asked.Before(old.renewAt) {
		return old, nil // somebody was faster
	}
	if usable && old.renewable {
		var t tokenInfo
		err := c.request(ctx, opLogin, old.token, "auth/token/renew-self", struct{}{}, &t)
		// A shorter life than before means that the token nears its maximum.
		if h := hold(asked, old.token, t.Lease, t.Renewable, old.file); err == nil && h.granted >= old.granted {
			return h, nil
		}
	}
	h, err := c.login(ctx)
	var e *kek.Error
	switch {
	case err != nil && usable:
		old.renewAt = time.Now().Add(time.Until(old.ends) / 4)
		return old, nil
	case errors.As(err, &e):
		e.Err = fmt.Errorf("logging in to Vault by %s: %w", c.auth.Method, e.Err)
		return held{}, e
	}
	return h, err
}

// login gets a new token, of files that it reads anew.
func (c *Client) login(ctx context.Context) (h held, err error) {
	var t tokenInfo
	asked, in := time.Now(), map[string]string{}
	switch c.auth.Method {
	case Token:
		token, file := c.auth.token, fs.FileInfo(nil)
		if token == "" {
			token, file, err = readLine(c.auth.TokenFile, private)
		}
		if err == nil {
			err = c.request(ctx, opLogin, token, lookupSelf, nil, &t)
		}
		return hold(asked, token, t.TTL, t.Renewable, file), err
	case Kubernetes, JWT:
		in["role"] = c.auth.Role
		in["jwt"], _, err = readLine(c.auth.TokenFile, unchangeable)
	case AppRole:
		in["role_id"] = c.auth.RoleID
		if c.auth.SecretIDFile != "" {
			in["secret_id"], _, err = readLine(c.auth.SecretIDFile, private)
		}
	case Cert:
		in["name"] = c.auth.Role
		c.http.CloseIdleConnections() // they bear the certificate of when they began
	}
	if err == nil {
		err = c.request(ctx, opLogin, "", fmt.Sprintf("auth/%s/login", c.auth.Mount), in, &t)
	}
	if err == nil && t.Token == "" {
		err = Because(kek.Unauthenticated, "no token in the answer: the login must not want a second factor")
	}
	return hold(asked, t.Token, t.Lease, t.Renewable, nil), err
}

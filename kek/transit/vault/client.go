package vault

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/kube-kek/kube-kek/kek"
	"github.com/openbao/openbao/api/v2"
	"golang.org/x/sync/singleflight"
)

// kindOf is the table from Vault's statuses
// (https://developer.hashicorp.com/vault/api-docs#http-status-codes) and, where
// one status says many things, its words, to what they mean.
func kindOf(op kek.Op, status int, words string) kek.Kind {
	says := func(s string) bool { return strings.Contains(words, s) }
	switch {
	case says("soft-deleted key"), says("(too old)"):
		return kek.KeyDisabled
	case says("encryption key not found"), says("version is too new"), says("no such key version"):
		return kek.KeyNotFound
	case status == 429:
		return kek.Throttled
	case status >= 500, status == 412, status == 472, status == 473:
		return kek.Unavailable // 503 is sealed; 412, 472 and 473 are standbys that lag or may not answer
	case op == opLogin:
		return kek.Unauthenticated
	case status == 403:
		return kek.Denied
	case status == 404:
		return kek.KeyNotFound
	case status == 400 && op == kek.OpUnwrap:
		return kek.Corrupt
	case status == 400, status == 405:
		return kek.Invalid
	}
	return kek.Unknown
}

// opLogin is the operation of requests for a token.
const opLogin kek.Op = "login"

// Because returns the error that a client returns: a kek.Error whose Op and Key
// are for the caller to fill in.
func Because(kind kek.Kind, format string, args ...any) error {
	return &kek.Error{Kind: kind, Err: fmt.Errorf(format, args...)}
}

// Client is a client of one server. It may be used concurrently.
type Client struct {
	api  *api.Client
	http *http.Client
	auth Auth

	logins singleflight.Group
	mu     sync.Mutex
	now    held
}

// Namespace returns the namespace, empty if there is none.
func (c *Client) Namespace() string { return c.api.Namespace() }

// Close closes idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Read reads path and decodes the data of the answer into out.
func (c *Client) Read(ctx context.Context, op kek.Op, path string, out any) error {
	return c.call(ctx, op, "read on "+path, path, nil, out)
}

// Update writes in to path and decodes the data of the answer into out.
func (c *Client) Update(ctx context.Context, op kek.Op, path string, in, out any) error {
	return c.call(ctx, op, "update on "+path, path, in, out)
}

const lookupSelf = "auth/token/lookup-self"

// Identity tells of the token that is in use.
func (c *Client) Identity(ctx context.Context) (string, error) {
	var t tokenInfo
	if err := c.Read(ctx, kek.OpIdentity, lookupSelf, &t); err != nil {
		return "", err
	}
	who := t.DisplayName + " by " + t.Path
	if t.EntityID != "" {
		who += ", entity " + t.EntityID
	}
	for _, k := range slices.Sorted(maps.Keys(t.Meta)) {
		who += ", " + k + " " + t.Meta[k]
	}
	return who, nil
}

// call makes a request with a token. By 403, Vault refuses a token that may not
// and one that ended alike: if the token cannot even look itself up, a new one is
// got, once, and what that is refused is denied.
func (c *Client) call(ctx context.Context, op kek.Op, permission, path string, in, out any) error {
	refused := ""
	for {
		token, err := c.token(ctx, refused)
		if err != nil {
			return err
		}
		err = c.request(ctx, op, token, path, in, out)
		var e *kek.Error
		if !errors.As(err, &e) || e.Kind != kek.Denied {
			return err
		}
		lookup := c.request(ctx, op, token, lookupSelf, nil, &tokenInfo{})
		switch {
		case lookup != nil && kek.KindOf(lookup) != kek.Denied:
			return lookup
		case lookup != nil && refused == "":
			refused = token
			continue
		case lookup != nil && strings.Contains(e.Error()+lookup.Error(), "invalid token"):
			e.Kind = kek.Unauthenticated
		default:
			e.Permission = permission
		}
		return e
	}
}

// request makes one request: a GET without in, else a POST. It decodes the data
// of the answer into out, or the token that a login got.
func (c *Client) request(ctx context.Context, op kek.Op, token, path string, in, out any) error {
	method := http.MethodGet
	if in != nil {
		method = http.MethodPost
	}
	r := c.api.NewRequest(method, "/v1/"+path)
	r.ClientToken = token
	if err := r.SetJSONBody(in); err != nil {
		return Because(kek.Invalid, "%w", err)
	}
	resp, err := c.api.RawRequestWithContext(ctx, r)
	if resp != nil {
		defer resp.Body.Close()
	}
	if err != nil {
		return judge(op, resp, err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return judge(op, resp, err)
	}
	defer clear(body)
	var reply struct {
		RequestID string          `json:"request_id"`
		Data      json.RawMessage `json:"data"`
		Auth      json.RawMessage `json:"auth"`
		Warnings  []string        `json:"warnings"`
	}
	err = json.Unmarshal(body, &reply)
	kek.RecordCall(ctx, reply.RequestID)
	data := reply.Data
	if op == opLogin && in != nil {
		data = reply.Auth
	}
	defer clear(data)
	switch {
	case err != nil || len(data) == 0 || json.Unmarshal(data, out) != nil:
		return Because(kek.Unavailable, "an answer of status %d that is not one of Vault", resp.StatusCode)
	case strings.Contains(strings.Join(reply.Warnings, " "), "associated_data"):
		return Because(kek.Invalid, "the server ignores associated_data: it must be Vault 1.13 or later, or OpenBao")
	}
	return nil
}

// judge tells what an error of the API means. An answer that has not Vault's form
// is not its word, and is not quoted: it could hold anything.
func judge(op kek.Op, resp *api.Response, err error) error {
	var (
		e    *kek.Error
		said *api.ResponseError
		cert *tls.CertificateVerificationError
		at   *url.Error
	)
	if errors.As(err, &said) && said.StatusCode == 404 && said.Errors == nil {
		// K/V says so in a warning that Transit is not there.
		var reply struct{ Warnings []string }
		if json.NewDecoder(resp.Body).Decode(&reply) == nil {
			said.Errors = reply.Warnings
		}
	}
	switch {
	case errors.As(err, &e): // about a file that the connection needed
		return e
	case errors.As(err, &said) && (said.RawError || said.Errors == nil):
		return Because(kek.Unavailable, "an answer of status %d that is not one of Vault", said.StatusCode)
	case errors.As(err, &said):
		words := strings.Join(strings.Fields(strings.Join(said.Errors, "; ")), " ")
		e = &kek.Error{Kind: kindOf(op, said.StatusCode, words), Err: fmt.Errorf("Vault answers %d: %s", said.StatusCode, words)}
		if said.StatusCode == 404 {
			e.Err = fmt.Errorf("Vault answers 404: %s: correct the key, the mount or the namespace", cmp.Or(words, "nothing is at this path"))
		}
		if s, err := strconv.ParseUint(resp.Header.Get("Retry-After"), 10, 32); err == nil && e.Kind == kek.Throttled {
			e.RetryAfter = time.Duration(s) * time.Second
		}
		return e
	case errors.As(err, &cert):
		return Because(kek.Unavailable, "the server's certificate is not trusted: %w: renew it, or correct the CA bundle", cert.Err)
	case errors.As(err, &at):
		err = at.Err // its URL says nothing new
	}
	return Because(kek.Unavailable, "no answer: %w", err)
}

package azurekv

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/kube-kek/kube-kek/kek"
)

// refusal is the body of Key Vault's errors.
type refusal struct {
	Error struct {
		Code    string `json:"code"`
		Message string `json:"message"`
		Inner   struct {
			Code string `json:"code"`
		} `json:"innererror"`
	} `json:"error"`
}

// kindOf is the table from Key Vault's answers to what they mean here.
func kindOf(op kek.Op, status int, r refusal) kek.Kind {
	switch {
	case status == http.StatusTooManyRequests:
		return kek.Throttled
	case status >= http.StatusInternalServerError, status == http.StatusRequestTimeout:
		return kek.Unavailable
	case status == http.StatusUnauthorized:
		return kek.Unauthenticated
	case r.Error.Code == "":
		return kek.Unavailable // a proxy's or a gateway's answer: the vault did not speak
	case status == http.StatusForbidden:
		switch r.Error.Inner.Code {
		case "KeyDisabled", "KeyExpired", "KeyNotYetValid", "KeyNotYetValidOrExpired":
			return kek.KeyDisabled
		case "ForbiddenByFirewall", "ForbiddenByConnection":
			return kek.Unavailable // it is the network that is refused, whoever speaks
		}
		if strings.Contains(r.Error.Message, " is not allowed on a") { // … disabled key, an expired key
			return kek.KeyDisabled
		}
		return kek.Denied
	case status == http.StatusNotFound:
		return kek.KeyNotFound
	case status == http.StatusBadRequest && op == kek.OpUnwrap:
		return kek.Corrupt // BadParameter: what does not unwrap is a bad parameter
	case status == http.StatusBadRequest:
		return kek.Invalid
	}
	return kek.Unknown
}

// fail makes the contract's error of what a call of the SDK returned.
func (p *Provider) fail(op kek.Op, permission string, err error) error {
	e := &kek.Error{Op: op, Key: kek.KeyRef{ID: p.key.id}}
	var (
		answer  *azcore.ResponseError
		noToken *credentialError
	)
	switch {
	case errors.As(err, &noToken):
		e.Kind, e.Err, e.RetryAfter = noToken.kind, noToken, noToken.retryAfter
	case errors.As(err, &answer) && answer.RawResponse != nil:
		var r refusal
		body, _ := runtime.Payload(answer.RawResponse)
		_ = json.Unmarshal(body, &r) // one that is not Key Vault's is not quoted: it could hold anything
		e.Kind = kindOf(op, answer.StatusCode, r)
		word := cmp.Or(r.Error.Inner.Code, r.Error.Code, "not an answer of Key Vault")
		e.Err = fmt.Errorf("status %d, %s: %s (request %s)", answer.StatusCode, word, firstLine(r.Error.Message),
			cmp.Or(answer.RawResponse.Header.Get("X-Ms-Request-Id"), "without an ID"))
		e.RetryAfter = retryAfter(answer.RawResponse)
	default:
		e.Kind, e.Err = kek.Unavailable, unanswered(err)
	}
	if e.Kind == kek.Denied {
		e.Permission = permission
	}
	if e.Kind != kek.Throttled {
		e.RetryAfter = 0
	}
	return e
}

func (p *Provider) refuse(op kek.Op, kind kek.Kind, cause error) error {
	return &kek.Error{Op: op, Key: kek.KeyRef{ID: p.key.id}, Kind: kind, Err: cause}
}

// garbled is an answer of status 200 that lacks what it must have, or speaks of
// another key: whoever gave it is not Key Vault.
func (p *Provider) garbled(op kek.Op, action string) error {
	return p.refuse(op, kek.Unavailable, fmt.Errorf("the endpoint's answer to %s is not one of Key Vault", action))
}

// unanswered words an error of the network without the request's URL, or what
// the SDK says of an answer that it cannot read.
func unanswered(err error) error {
	var at *url.Error
	switch {
	case errors.As(err, &at):
		return fmt.Errorf("no answer: %w", at.Err)
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("no answer: %w", err)
	}
	return fmt.Errorf("no answer of Key Vault: %s", firstLine(err.Error()))
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	return strings.TrimSpace(line)
}

// retryAfter reads how long to wait: seconds or a date in HTTP's own header
// (RFC 9110, section 10.2.3), milliseconds in Azure's.
func retryAfter(resp *http.Response) time.Duration {
	for _, name := range []string{"Retry-After-Ms", "X-Ms-Retry-After-Ms"} {
		if ms, err := strconv.ParseUint(resp.Header.Get(name), 10, 32); err == nil {
			return time.Duration(ms) * time.Millisecond
		}
	}
	after := resp.Header.Get("Retry-After")
	if s, err := strconv.ParseUint(after, 10, 32); err == nil {
		return time.Duration(s) * time.Second
	}
	if at, err := http.ParseTime(after); err == nil {
		return max(time.Until(at), 0)
	}
	return 0
}

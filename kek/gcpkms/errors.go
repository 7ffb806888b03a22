package gcpkms

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/googleapis/gax-go/v2/apierror"
	"github.com/kube-kek/kube-kek/kek"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// kindOf is the table from gRPC's codes in an answer of KMS to what they mean here.
func kindOf(op kek.Op, code codes.Code, d apierror.ErrDetails) kek.Kind {
	switch code {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Internal, codes.Aborted, codes.Canceled, codes.DataLoss, codes.Unknown:
		return kek.Unavailable
	case codes.ResourceExhausted:
		return kek.Throttled
	case codes.Unauthenticated:
		return kek.Unauthenticated
	case codes.PermissionDenied:
		// A machine's access scopes limit its token: not a word about the key.
		if d.ErrorInfo.GetReason() == "ACCESS_TOKEN_SCOPE_INSUFFICIENT" {
			return kek.Unauthenticated
		}
		return kek.Denied
	case codes.NotFound:
		return kek.KeyNotFound
	case codes.FailedPrecondition:
		for _, v := range d.PreconditionFailure.GetViolations() {
			switch {
			case strings.HasPrefix(v.Type, "KEY_PENDING"): // a version that is being made
				return kek.Unavailable
			case strings.HasPrefix(v.Type, "KEY_"): // KEY_DISABLED, KEY_DESTROYED, …
				return kek.KeyDisabled
			}
		}
		return kek.Unknown
	case codes.InvalidArgument:
		if op == kek.OpUnwrap {
			return kek.Corrupt
		}
		return kek.Invalid
	case codes.Unimplemented, codes.OutOfRange, codes.AlreadyExists:
		return kek.Invalid
	}
	return kek.Unknown
}

// fail makes the contract's error of what a call returned.
func (p *Provider) fail(op kek.Op, permission string, err error) error {
	var (
		silent *unanswered
		creds  *credentialsError
		e      = &kek.Error{Op: op, Key: kek.KeyRef{ID: p.name}}
	)
	switch answer, ok := apierror.FromError(err); {
	case errors.As(err, &creds):
		e.Kind, e.Err = creds.kind, creds
	case errors.As(err, &silent):
		e.Kind, e.Err = kek.Unavailable, silent
	case ok:
		st, details := answer.GRPCStatus(), answer.Details()
		e.Kind = kindOf(op, st.Code(), details)
		e.Err = fmt.Errorf("%s: %s", st.Code(), firstLine(st.Message()))
		if reason := details.ErrorInfo.GetReason(); e.Kind == kek.Denied && (reason == "" || reason == "IAM_PERMISSION_DENIED") {
			e.Permission = permission
		}
		if e.Kind == kek.Throttled {
			e.RetryAfter = details.RetryInfo.GetRetryDelay().AsDuration()
		}
	default:
		e.Kind, e.Err = kek.KindOf(err), err
	}
	return e
}

func (p *Provider) refuse(op kek.Op, kind kek.Kind, cause error) error {
	return &kek.Error{Op: op, Key: kek.KeyRef{ID: p.name}, Kind: kind, Err: cause}
}

// unanswered is an error that gRPC made itself: no connection, a deadline, a
// proxy's page. gRPC gives a page of status 403 the code PermissionDenied, which
// is not KMS's word.
type unanswered struct{ status *status.Status }

func (u *unanswered) Error() string { return "no answer: " + firstLine(u.status.Message()) }

// credentialsError is the failure to get a token, before any request to KMS.
type credentialsError struct {
	kind kek.Kind
	error
}

func (c *credentialsError) Error() string { return "getting Google credentials: " + c.error.Error() }
func (c *credentialsError) Unwrap() error { return c.error }

// refused is an HTTP answer that is not a success, from whoever gives tokens.
type refused struct {
	status int
	text   string
}

func (r *refused) Error() string {
	return fmt.Sprintf("status %d: %s", r.status, r.text)
}

func (r *refused) kind() kek.Kind {
	switch {
	case r.status == http.StatusTooManyRequests:
		return kek.Throttled
	case r.status >= http.StatusInternalServerError:
		return kek.Unavailable
	}
	return kek.Unauthenticated
}

// words are what Google's token services say in an error, which has two forms.
// Anything else is not quoted: it could hold anything.
func words(body []byte) string {
	var oauth struct {
		Code string `json:"error"`
		Text string `json:"error_description"`
	}
	var api struct {
		Error struct{ Status, Message string }
	}
	switch {
	case json.Unmarshal(body, &oauth) == nil && oauth.Code != "":
		return firstLine(oauth.Code + ": " + oauth.Text)
	case json.Unmarshal(body, &api) == nil && api.Error.Message != "":
		return firstLine(api.Error.Status + ": " + api.Error.Message)
	}
	return "an answer that is not one of Google's"
}

// asCredentialsError tells what the failure to get a token means. What is wrong
// with the credentials stays wrong; what is wrong with the network does not.
func asCredentialsError(err error) error {
	var (
		done *credentialsError
		no   *refused
		at   *url.Error
	)
	switch {
	case errors.As(err, &done):
		return done
	case errors.As(err, &no):
		return &credentialsError{no.kind(), err}
	case errors.As(err, &at), errors.Is(err, context.DeadlineExceeded):
		return &credentialsError{kek.Unavailable, err}
	}
	return &credentialsError{kek.Unauthenticated, err}
}

func firstLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	return s[:min(len(s), 500)]
}

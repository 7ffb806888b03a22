package awskms

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"
	"github.com/kube-kek/kube-kek/kek"
)

// kindOf is the table from AWS's error codes, of KMS, of STS and the common
// ones, to what they mean here.
func kindOf(code string) kek.Kind {
	switch code {
	case "AccessDeniedException", "AccessDenied", "OptInRequired":
		return kek.Denied
	case "NotFoundException":
		return kek.KeyNotFound
	case "DisabledException", "KMSInvalidStateException":
		return kek.KeyDisabled
	case "InvalidCiphertextException":
		return kek.Corrupt
	case "IncorrectKeyException", "IncorrectKeyMaterialException", "InvalidKeyUsageException", "InvalidArnException",
		"InvalidGrantTokenException", "UnsupportedOperationException", "UnknownOperationException",
		"ValidationException", "ValidationError", "SerializationException":
		return kek.Invalid
	case "ThrottlingException", "Throttling", "ThrottledException", "RequestThrottled", "RequestLimitExceeded",
		"TooManyRequestsException", "LimitExceededException":
		return kek.Throttled
	case "KMSInternalException", "DependencyTimeoutException", "KeyUnavailableException",
		"InternalFailure", "InternalError", "ServiceUnavailable", "ServiceUnavailableException", "RequestTimeout",
		"IDPCommunicationError",
		// The SDK's word for an error that bears no code: not KMS's answer.
		"UnknownError":
		return kek.Unavailable
	case "ExpiredTokenException", "ExpiredToken", "UnrecognizedClientException", "InvalidClientTokenId", "InvalidAccessKeyId",
		"InvalidSignatureException", "SignatureDoesNotMatch", "RequestExpired", "RequestTimeTooSkewed", "AuthFailure",
		"MissingAuthenticationTokenException", "MissingAuthenticationToken", "MissingAuthentication",
		"IncompleteSignatureException", "IncompleteSignature", "InvalidIdentityToken":
		return kek.Unauthenticated
	}
	return kek.Unknown
}

// credentialsError is the failure to get credentials, before any request to KMS.
type credentialsError struct {
	error
	from string
}

func (e *credentialsError) Unwrap() error { return e.error }

// fail makes the contract's error of what a call of the SDK returned.
func (p *Provider) fail(op kek.Op, permission string, err error) error {
	kind, cause := judge(err)
	e := &kek.Error{Op: op, Key: kek.KeyRef{ID: p.id()}, Kind: kind, Err: cause}
	switch kind {
	case kek.Denied:
		e.Permission = permission
	case kek.Throttled:
		e.RetryAfter = retryAfter(err)
	}
	return e
}

// failOnKey is fail where the key was used. KMSInvalidStateException is KMS's word
// on a key that is disabled, but also its answer while a custom key store is
// disconnected or ails, which is an outage: the key's state tells them apart.
// Where it is not told, the exception is taken for the word.
func (p *Provider) failOnKey(ctx context.Context, op kek.Op, permission, arn string, err error) error {
	var api smithy.APIError
	if errors.As(err, &api) && api.ErrorCode() == "KMSInvalidStateException" {
		md, describeErr := p.describe(ctx, op, arn)
		if describeErr == nil && stateOf(md.KeyState) != kek.StateDisabled && stateOf(md.KeyState) != kek.StatePendingDeletion {
			return p.refuse(op, kek.Unavailable, fmt.Errorf("key state %s: %s", md.KeyState, word(api, requestID(err))))
		}
	}
	return p.fail(op, permission, err)
}

func (p *Provider) refuse(op kek.Op, kind kek.Kind, cause error) error {
	return &kek.Error{Op: op, Key: kek.KeyRef{ID: p.id()}, Kind: kind, Err: cause}
}

// garbled is an answer of status 200 that lacks what it must have, or speaks of
// another key: whoever gave it is not KMS.
func (p *Provider) garbled(op kek.Op, action string) error {
	return p.refuse(op, kek.Unavailable, fmt.Errorf("the endpoint's answer to %s is not one of KMS", action))
}

// id is the key as far as it is known.
func (p *Provider) id() string {
	if arn := p.known(); arn != "" {
		return arn
	}
	return p.name
}

// judge tells what an error of the SDK means, and words it without the SDK's
// layers. An answer that is not one of AWS is not quoted: it could hold anything.
func judge(err error) (kek.Kind, error) {
	kind, cause := judgeAnswer(err)
	var credentials *credentialsError
	if !errors.As(err, &credentials) {
		return kind, cause
	}
	if kind == kek.Unknown {
		cause = credentials.error
	}
	if !kind.Temporary() || fromInstance(err) {
		kind = kek.Unauthenticated
	}
	return kind, fmt.Errorf("getting AWS credentials%s: %w", credentials.from, cause)
}

func judgeAnswer(err error) (kek.Kind, error) {
	var (
		api     smithy.APIError
		resp    *smithyhttp.ResponseError
		garbled *smithy.DeserializationError
		params  smithy.InvalidParamsError
		at      *url.Error
	)
	answered := errors.As(err, &resp) && resp.Response != nil && resp.Response.Response != nil
	switch {
	case errors.As(err, &api):
		kind := kindOf(api.ErrorCode())
		if kind == kek.Unknown && answered {
			kind = kindOfStatus(resp.HTTPStatusCode())
		}
		return kind, errors.New(word(api, requestID(err)))
	case errors.As(err, &garbled) && answered:
		return kek.Unavailable, fmt.Errorf("an answer of status %d that is not one of AWS%s", resp.HTTPStatusCode(), requestID(err))
	case errors.As(err, &params):
		return kek.Invalid, params
	case errors.As(err, &at):
		return kek.Unavailable, fmt.Errorf("no answer: %w", at.Err)
	case errors.Is(err, context.Canceled):
		return kek.Unavailable, fmt.Errorf("no answer: %w", context.Canceled)
	case errors.Is(err, context.DeadlineExceeded):
		return kek.Unavailable, fmt.Errorf("no answer: %w", context.DeadlineExceeded)
	}
	return kek.Unknown, err
}

func kindOfStatus(status int) kek.Kind {
	switch {
	case status == http.StatusTooManyRequests:
		return kek.Throttled
	case status >= http.StatusInternalServerError:
		return kek.Unavailable
	}
	return kek.Unknown
}

// word is AWS's code and the first line of its message. What follows in a
// message about a wrong signature is the request, session token included.
func word(api smithy.APIError, requestID string) string {
	message, _, _ := strings.Cut(api.ErrorMessage(), "\n")
	if message == "" {
		return api.ErrorCode() + requestID
	}
	return api.ErrorCode() + ": " + message + requestID
}

func requestID(err error) string {
	var answered interface{ ServiceRequestID() string }
	if errors.As(err, &answered) && answered.ServiceRequestID() != "" {
		return " (request " + answered.ServiceRequestID() + ")"
	}
	return ""
}

// fromInstance reports whether the instance metadata service failed. The SDK
// asks it last, so that mostly means a machine that was given no credentials.
func fromInstance(err error) bool {
	var op *smithy.OperationError
	for errors.As(err, &op) {
		if op.ServiceID == "ec2imds" {
			return true
		}
		err = op.Err
	}
	return false
}

// retryAfter reads the header that HTTP defines, in seconds, and AWS's own, in
// milliseconds.
func retryAfter(err error) time.Duration {
	var resp *smithyhttp.ResponseError
	if !errors.As(err, &resp) || resp.Response == nil || resp.Response.Response == nil {
		return 0
	}
	if ms, err := strconv.ParseUint(resp.Response.Header.Get("X-Amz-Retry-After"), 10, 32); err == nil {
		return time.Duration(ms) * time.Millisecond
	}
	if s, err := strconv.ParseUint(resp.Response.Header.Get("Retry-After"), 10, 32); err == nil {
		return time.Duration(s) * time.Second
	}
	return 0
}

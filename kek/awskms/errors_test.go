package awskms_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/kube-kek/kube-kek/kek"
	"github.com/kube-kek/kube-kek/kek/awskms"
	"github.com/kube-kek/kube-kek/kek/awskms/awskmstest"
)

func TestWhatAWSAnswersIsSortedIntoKinds(t *testing.T) {
	l := newLab(t)
	p := l.provider(t, awskms.Config{})
	for _, c := range []struct {
		name  string
		fault awskmstest.Fault
		want  kek.Kind
	}{
		{"denied", awskmstest.Fault{Code: "AccessDeniedException"}, kek.Denied},
		{"not found", awskmstest.Fault{Code: "NotFoundException"}, kek.KeyNotFound},
		{"disabled", awskmstest.Fault{Code: "DisabledException"}, kek.KeyDisabled},
		{"wrong state", awskmstest.Fault{Code: "KMSInvalidStateException"}, kek.KeyDisabled},
		{"bad ciphertext", awskmstest.Fault{Code: "InvalidCiphertextException"}, kek.Corrupt},
		{"another key", awskmstest.Fault{Code: "IncorrectKeyException"}, kek.Invalid},
		{"wrong usage", awskmstest.Fault{Code: "InvalidKeyUsageException"}, kek.Invalid},
		{"bad parameter", awskmstest.Fault{Code: "ValidationException"}, kek.Invalid},
		{"bad ARN", awskmstest.Fault{Code: "InvalidArnException"}, kek.Invalid},
		{"too fast", awskmstest.Fault{Code: "ThrottlingException"}, kek.Throttled},
		{"over a limit", awskmstest.Fault{Code: "LimitExceededException"}, kek.Throttled},
		{"429 of an unknown code", awskmstest.Fault{Code: "SlowDownException", Status: 429}, kek.Throttled},
		{"500", awskmstest.Fault{Code: "KMSInternalException"}, kek.Unavailable},
		{"a dependency's timeout", awskmstest.Fault{Code: "DependencyTimeoutException"}, kek.Unavailable},
		{"an unavailable key", awskmstest.Fault{Code: "KeyUnavailableException"}, kek.Unavailable},
		{"5xx of an unknown code", awskmstest.Fault{Code: "OutToLunch", Status: 503}, kek.Unavailable},
		{"a code that nobody knows", awskmstest.Fault{Code: "OutToLunch"}, kek.Unknown},
		{"an expired token", awskmstest.Fault{Code: "ExpiredTokenException"}, kek.Unauthenticated},
		{"an unknown caller", awskmstest.Fault{Code: "UnrecognizedClientException"}, kek.Unauthenticated},
		{"an expired request", awskmstest.Fault{Code: "RequestExpired"}, kek.Unauthenticated},
		{"a proxy's page", awskmstest.Fault{Status: 403, Body: []byte("<html>Forbidden</html>")}, kek.Unavailable},
		{"a refusal without a code", awskmstest.Fault{Status: 403, Body: []byte(`{"message":"no"}`)}, kek.Unavailable},
		{"success with garbage", awskmstest.Fault{Body: []byte("QUJDRA==")}, kek.Unavailable},
		{"success with nothing in it", awskmstest.Fault{Body: []byte("{}")}, kek.Unavailable},
		{"success without a body", awskmstest.Fault{Status: 200}, kek.Unavailable},
		{"a redirect", awskmstest.Fault{Status: 301}, kek.Unavailable},
		{"a cut connection", awskmstest.Fault{Drop: true}, kek.Unavailable},
	} {
		t.Run(c.name, func(t *testing.T) {
			l.SetFault(c.fault)
			for op, call := range map[kek.Op]func() error{
				kek.OpCurrent: func() error { return describe(t.Context(), p) },
				kek.OpWrap:    func() error { _, err := p.Wrap(t.Context(), []byte("key")); return err },
				kek.OpUnwrap: func() error {
					_, err := p.Unwrap(t.Context(), kek.Wrapped{Key: kek.KeyRef{ID: l.key}, Ciphertext: []byte("x")})
					return err
				},
			} {
				var e *kek.Error
				if err := call(); !errors.As(err, &e) || e.Kind != c.want || e.Op != op || e.Key.ID != l.key {
					t.Errorf("%s: %v, want %v", op, err, c.want)
				} else if s := err.Error(); strings.Contains(s, "operation error") || strings.Contains(s, "https response error") || strings.Contains(s, "html") {
					t.Errorf("%s: the error has more than AWS's words: %s", op, s)
				}
			}
		})
	}
}

func TestThrottlingSaysWhenToTryAgain(t *testing.T) {
	l := newLab(t)
	l.SetFault(awskmstest.Fault{Code: "ThrottlingException", RetryAfter: 3 * time.Second})
	var e *kek.Error
	if err := describe(t.Context(), l.provider(t, awskms.Config{})); !errors.As(err, &e) || e.RetryAfter != 3*time.Second {
		t.Errorf("got %v with RetryAfter %v, want 3s", err, e.RetryAfter)
	}
}

func TestTheSDKDoesNotRetry(t *testing.T) {
	l := newLab(t)
	t.Setenv("AWS_MAX_ATTEMPTS", "5")
	l.SetFault(awskmstest.Fault{Code: "KMSInternalException"})
	if err := describe(t.Context(), l.provider(t, awskms.Config{})); kek.KindOf(err) != kek.Unavailable || l.Calls("") != 1 {
		t.Errorf("%d calls, %v", l.Calls(""), err)
	}
}

func TestAnAbsentServerIsUnavailable(t *testing.T) {
	l := newLab(t)
	p := l.provider(t, awskms.Config{})
	l.http.Close()
	err := describe(t.Context(), p)
	if kek.KindOf(err) != kek.Unavailable || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("got %v", err)
	}
}

func TestACallThatHangsEndsWithItsContext(t *testing.T) {
	l := newLab(t)
	p := l.provider(t, awskms.Config{})
	l.SetFault(awskmstest.Fault{Hang: true})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- describe(ctx, p) }()
	for l.Calls("DescribeKey") == 0 {
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := <-done; kek.KindOf(err) != kek.Unavailable || !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	l.ResetCalls()
	if err := describe(ctx, p); kek.KindOf(err) != kek.Unavailable || l.Calls("") != 0 {
		t.Errorf("cancelled before: %v, %d calls", err, l.Calls(""))
	}
	l.SetFault()
}

func TestErrorsHoldNoSecret(t *testing.T) {
	l := newLab(t)
	me := awskmstest.Principal{SessionToken: "a-session-token", SecretAccessKey: "a-secret-key", Allow: everything}
	me = l.AddPrincipal(me)
	wrong := me
	wrong.SecretAccessKey = "a-wrong-secret"
	l.useEnv(t, wrong)
	_, err := l.provider(t, awskms.Config{}).Wrap(t.Context(), []byte("the-plaintext-key"))
	if kek.KindOf(err) != kek.Unauthenticated || !strings.Contains(err.Error(), "InvalidSignatureException: The request signature we calculated") {
		t.Fatalf("a wrong secret: %v", firstLine(err))
	}
	for _, secret := range []string{"a-session-token", "a-secret-key", "a-wrong-secret", "the-plaintext-key", "dGhlLXBsYWlu", "\n"} {
		if strings.Contains(err.Error(), secret) {
			t.Errorf("the error holds %q: %v", secret, firstLine(err))
		}
	}
}

func TestAClientOfAnotherRegionIsUnauthenticated(t *testing.T) {
	l := newLab(t)
	p := l.provider(t, awskms.Config{Key: strings.Replace(l.key, "eu-west-1", "us-east-1", 1)})
	if err := describe(t.Context(), p); kek.KindOf(err) != kek.Unauthenticated || !strings.Contains(err.Error(), "valid region") {
		t.Errorf("got %v", err)
	}
}

func TestTheRegionOfAnARNGoesBeforeTheEnvironments(t *testing.T) {
	l := newLab(t)
	t.Setenv("AWS_REGION", "us-east-1")
	if err := describe(t.Context(), l.provider(t, awskms.Config{})); err != nil {
		t.Error(err)
	}
	l.SetAlias("alias/kek", l.key)
	if err := describe(t.Context(), l.provider(t, awskms.Config{Key: "alias/kek", Region: "eu-west-1"})); err != nil {
		t.Error(err)
	}
}

func TestAKMSThatDoesNotKeepToTheKeyIsNotBelieved(t *testing.T) {
	l := newLab(t)
	other := l.CreateKey()
	mad := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Write([]byte(`{"CiphertextBlob":"eA==","Plaintext":"eA==","KeyId":"` + other + `"}`))
	}))
	t.Cleanup(mad.Close)
	p := l.provider(t, awskms.Config{Endpoint: mad.URL})
	if _, err := p.Unwrap(t.Context(), kek.Wrapped{Key: kek.KeyRef{ID: l.key}, Ciphertext: []byte("x")}); kek.KindOf(err) != kek.Unavailable {
		t.Errorf("Unwrap: %v", err)
	}
	liar := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Write([]byte(`{"CiphertextBlob":"eA==","Plaintext":"eA==","KeyId":"` + l.key + `"}`))
	}))
	t.Cleanup(liar.Close)
	p = l.provider(t, awskms.Config{Endpoint: liar.URL})
	if _, err := p.Wrap(t.Context(), []byte("key")); kek.KindOf(err) != kek.Corrupt {
		t.Errorf("Wrap of a key that does not come back: %v", err)
	}
	if _, err := p.Wrap(t.Context(), make([]byte, kek.MaxPlaintext+1)); kek.KindOf(err) != kek.Invalid {
		t.Errorf("Wrap of a key that is too large: %v", err)
	}
}

func writeFile(t *testing.T, path, content string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

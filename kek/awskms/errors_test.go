package awskms_test

import (
	"context"
	"errors"
	"io"
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
	for header, want := range map[string]time.Duration{"Retry-After": 3 * time.Second, "X-Amz-Retry-After": 3 * time.Millisecond} {
		p := l.provider(t, awskms.Config{Endpoint: answering(t, func(w http.ResponseWriter) {
			w.Header().Set(header, "3")
			w.WriteHeader(http.StatusBadRequest)
			io.WriteString(w, `{"__type":"ThrottlingException"}`)
		})})
		var e *kek.Error
		if err := describe(t.Context(), p); !errors.As(err, &e) || e.Kind != kek.Throttled || e.RetryAfter != want {
			t.Errorf("%s: 3: got %v with RetryAfter %v, want %v", header, err, e.RetryAfter, want)
		}
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

// answering starts an endpoint that answers every request in the same way.
func answering(t *testing.T, answer func(http.ResponseWriter)) (url string) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { answer(w) }))
	t.Cleanup(s.Close)
	return s.URL
}

func TestAnEndpointThatAnswersForAnotherKeyIsNotBelieved(t *testing.T) {
	l := newLab(t)
	other := l.CreateKey()
	says := func(key string) *awskms.Provider {
		return l.provider(t, awskms.Config{Endpoint: answering(t, func(w http.ResponseWriter) {
			io.WriteString(w, `{"CiphertextBlob":"eA==","Plaintext":"eA==","KeyId":"`+key+`"}`)
		})})
	}
	if _, err := says(other).Unwrap(t.Context(), kek.Wrapped{Key: kek.KeyRef{ID: l.key}, Ciphertext: []byte("x")}); kek.KindOf(err) != kek.Unavailable {
		t.Errorf("Unwrap: %v", err)
	}
	if _, err := says(l.key).Wrap(t.Context(), []byte("key")); kek.KindOf(err) != kek.Corrupt {
		t.Errorf("Wrap of a key that does not come back: %v", err)
	}
	if _, err := says(l.key).Wrap(t.Context(), make([]byte, kek.MaxPlaintext+1)); kek.KindOf(err) != kek.Invalid {
		t.Errorf("Wrap of a key that is too large: %v", err)
	}
}

func TestImportedKeyMaterialThatEndsIsNoted(t *testing.T) {
	l := newLab(t)
	p := l.provider(t, awskms.Config{Endpoint: answering(t, func(w http.ResponseWriter) {
		io.WriteString(w, `{"KeyMetadata":{"Arn":"`+l.key+`","KeyId":"x","KeySpec":"SYMMETRIC_DEFAULT","KeyUsage":"ENCRYPT_DECRYPT","KeyState":"Enabled","ValidTo":1893456000}}`)
	})})
	if err := describe(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	if notes := strings.Join(p.Facts().Notes, " "); !strings.Contains(notes, "ends at 2030-01-01T00:00:00Z") {
		t.Errorf("notes: %q", notes)
	}
}

func writeFile(t *testing.T, path, content string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

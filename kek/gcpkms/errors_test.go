package gcpkms_test

import (
	"context"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/kube-kek/kube-kek/kek"
	"github.com/kube-kek/kube-kek/kek/gcpkms"
	"github.com/kube-kek/kube-kek/kek/gcpkms/gcpkmstest"
	"google.golang.org/grpc/codes"
)

func TestWhatKMSAnswersIsSortedIntoKinds(t *testing.T) {
	l := newLab(t)
	p := l.provider(t)
	w, err := p.Wrap(t.Context(), []byte("key"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		fault gcpkmstest.Fault
		want  kek.Kind
	}{
		{"unavailable", gcpkmstest.Fault{Code: codes.Unavailable}, kek.Unavailable},
		{"its deadline exceeded", gcpkmstest.Fault{Code: codes.DeadlineExceeded}, kek.Unavailable},
		{"an internal error", gcpkmstest.Fault{Code: codes.Internal}, kek.Unavailable},
		{"an error without a name", gcpkmstest.Fault{Code: codes.Unknown}, kek.Unavailable},
		{"aborted", gcpkmstest.Fault{Code: codes.Aborted}, kek.Unavailable},
		{"too fast", gcpkmstest.Fault{Code: codes.ResourceExhausted}, kek.Throttled},
		{"a bad token", gcpkmstest.Fault{Code: codes.Unauthenticated}, kek.Unauthenticated},
		{"a token of a small scope", gcpkmstest.Fault{Code: codes.PermissionDenied, Reason: "ACCESS_TOKEN_SCOPE_INSUFFICIENT"}, kek.Unauthenticated},
		{"denied", gcpkmstest.Fault{Code: codes.PermissionDenied, Reason: "IAM_PERMISSION_DENIED"}, kek.Denied},
		{"an API that is switched off", gcpkmstest.Fault{Code: codes.PermissionDenied, Reason: "SERVICE_DISABLED"}, kek.Denied},
		{"not found", gcpkmstest.Fault{Code: codes.NotFound}, kek.KeyNotFound},
		{"a disabled version", gcpkmstest.Fault{Code: codes.FailedPrecondition, Violation: "KEY_DISABLED"}, kek.KeyDisabled},
		{"a destroyed version", gcpkmstest.Fault{Code: codes.FailedPrecondition, Violation: "KEY_DESTROYED"}, kek.KeyDisabled},
		{"a version in the making", gcpkmstest.Fault{Code: codes.FailedPrecondition, Violation: "KEY_PENDING_GENERATION"}, kek.Unavailable},
		{"a precondition that nobody knows", gcpkmstest.Fault{Code: codes.FailedPrecondition}, kek.Unknown},
		{"no such method", gcpkmstest.Fault{Code: codes.Unimplemented}, kek.Invalid},
		{"a code that nobody knows", gcpkmstest.Fault{Code: 42}, kek.Unknown},
		{"a cut connection", gcpkmstest.Fault{Drop: true}, kek.Unavailable},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.fault.Message = "first line\n<html>"
			l.SetFault(c.fault)
			for op, call := range map[kek.Op]func() error{
				kek.OpCurrent: func() error { return current(t.Context(), p) },
				kek.OpWrap:    func() error { _, err := p.Wrap(t.Context(), []byte("key")); return err },
				kek.OpUnwrap:  func() error { _, err := p.Unwrap(t.Context(), w); return err },
			} {
				var e *kek.Error
				if err := call(); !errors.As(err, &e) || e.Kind != c.want || e.Op != op || e.Key.ID != l.key {
					t.Errorf("%s: %v, want %v", op, err, c.want)
				} else if s := err.Error(); strings.Contains(s, "rpc error") || strings.Contains(s, "html") {
					t.Errorf("%s: the error has more than KMS's words: %s", op, s)
				} else if (e.Permission != "") != (c.name == "denied") {
					t.Errorf("%s: the permission %q", op, e.Permission)
				}
			}
		})
	}

	l.SetFault(gcpkmstest.Fault{Code: codes.InvalidArgument})
	for want, call := range map[kek.Kind]func() error{
		kek.Invalid: func() error { return current(t.Context(), p) },
		kek.Corrupt: func() error { _, err := p.Unwrap(t.Context(), w); return err },
	} {
		if err := call(); kek.KindOf(err) != want {
			t.Errorf("a bad argument: %v, want %v", err, want)
		}
	}
}

func TestThrottlingSaysWhenToTryAgain(t *testing.T) {
	l := newLab(t)
	p := l.provider(t)
	for _, delay := range []time.Duration{0, 3 * time.Second} {
		l.SetFault(gcpkmstest.Fault{Code: codes.ResourceExhausted, RetryDelay: delay})
		var e *kek.Error
		if err := current(t.Context(), p); !errors.As(err, &e) || e.Kind != kek.Throttled || e.RetryAfter != delay {
			t.Errorf("got %v, want Throttled with RetryAfter %v", err, delay)
		}
	}
}

func TestTheSDKDoesNotRetry(t *testing.T) {
	l := newLab(t)
	p := l.provider(t)
	for _, code := range []codes.Code{codes.Unavailable, codes.DeadlineExceeded, codes.Internal, codes.ResourceExhausted} {
		l.ResetCalls()
		l.SetFault(gcpkmstest.Fault{Code: code, Methods: []string{"GetCryptoKey"}})
		if err := current(t.Context(), p); err == nil || l.Calls("GetCryptoKey") != 1 {
			t.Errorf("%s: %d calls, %v", code, l.Calls("GetCryptoKey"), err)
		}
	}
}

// KMS alone has the word. gRPC turns a page of status 403 into PermissionDenied,
// and twice that would end all access to the records.
func TestAProxysPageIsNotKMSsWord(t *testing.T) {
	l := newLab(t)
	for _, status := range []int{200, 301, 400, 401, 403, 404, 429, 502} {
		page := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			w.WriteHeader(status)
			w.Write([]byte("<html>no</html>"))
		}))
		page.EnableHTTP2 = true
		page.StartTLS()
		defer page.Close()
		ca := writeFile(t, "page.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: page.Certificate().Raw}))
		p := l.provider(t, func(c *gcpkms.Config) { c.Endpoint, c.CABundle = page.Listener.Addr().String(), ca })
		err := current(t.Context(), p)
		if kek.KindOf(err) != kek.Unavailable || !strings.Contains(err.Error(), "no answer: ") || strings.Contains(err.Error(), "html>") {
			t.Errorf("a page of status %d: %v", status, err)
		}
	}
}

func TestAnAbsentServerIsUnavailableUntilItIsBack(t *testing.T) {
	l := newLab(t)
	road, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	road.Close()
	p := l.provider(t, func(c *gcpkms.Config) { c.Endpoint = road.Addr().String() })
	for range 20 {
		if err := current(t.Context(), p); kek.KindOf(err) != kek.Unavailable || !strings.Contains(err.Error(), "connection refused") {
			t.Errorf("nobody listens: %v", err)
		}
		time.Sleep(20 * time.Millisecond) // gRPC's pauses grow
	}
	if road, err = net.Listen("tcp", road.Addr().String()); err != nil {
		t.Fatal(err)
	}
	defer road.Close()
	go func() {
		for {
			from, err := road.Accept()
			if err != nil {
				return
			}
			to, err := net.Dial("tcp", l.Address())
			if err != nil {
				from.Close()
				continue
			}
			go io.Copy(to, from)
			go io.Copy(from, to)
		}
	}()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		err := current(t.Context(), p)
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the server is back: %v", err)
		}
	}
}

func TestOnlyATrustedServerIsAsked(t *testing.T) {
	l := newLab(t)
	err := current(t.Context(), l.provider(t, func(c *gcpkms.Config) { c.CABundle = "" }))
	if kek.KindOf(err) != kek.Unavailable || !strings.Contains(err.Error(), "certificate signed by unknown authority") {
		t.Errorf("without the bundle: %v", err)
	}
	if n := l.Calls("GetCryptoKey"); n != 0 {
		t.Errorf("a token went to a server that is not trusted, %d times", n)
	}
}

func TestACallThatHangsEndsWithItsContext(t *testing.T) {
	l := newLab(t)
	p := l.provider(t)
	if err := current(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	l.SetFault(gcpkmstest.Fault{Hang: true})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- current(ctx, p) }()
	for l.Calls("GetCryptoKey") < 2 {
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := <-ended; kek.KindOf(err) != kek.Unavailable {
		t.Errorf("cancelled: %v", err)
	}
	l.SetFault()
	if err := current(t.Context(), p); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

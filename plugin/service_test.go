package plugin_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	v2 "k8s.io/kms/apis/v2"

	"github.com/kube-kek/kube-kek/kek"
	"github.com/kube-kek/kube-kek/kek/kektest"
	"github.com/kube-kek/kube-kek/kek/localkek"
	"github.com/kube-kek/kube-kek/plugin"
)

// newRing returns a ring that runs on a fake home and is ready.
func newRing(t testing.TB, home *kektest.Provider) *localkek.Ring {
	t.Helper()
	c := localkek.DefaultConfig()
	c.Cluster = "test"
	c.Current = localkek.Home{Scheme: "fake", ID: "fake", Provider: home}
	ring, err := localkek.New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		ring.Run(ctx)
	}()
	t.Cleanup(func() {
		stop()
		<-done
		ring.Close()
	})
	waitFor(t, "the ring is ready", func() bool {
		_, err := ring.KeyID()
		return err == nil
	})
	return ring
}

// waitFor waits until ok, for as long as the test may run.
func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for !ok() {
		select {
		case <-t.Context().Done():
			t.Fatalf("waited in vain until %s", what)
		case <-time.After(time.Millisecond):
		}
	}
}

func TestEncryptAndDecryptAreInverseOverTheSocket(t *testing.T) {
	client, _ := serve(t, plugin.Config{Ring: newRing(t, kektest.New(kektest.Config{}))})
	st, err := client.Status(t.Context(), &v2.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if st.GetVersion() != "v2" || st.GetHealthz() != "ok" {
		t.Errorf("Status says version %q and healthz %q", st.GetVersion(), st.GetHealthz())
	}
	seed := []byte("0123456789abcdef0123456789abcdef")
	enc, err := client.Encrypt(t.Context(), &v2.EncryptRequest{Plaintext: seed, Uid: "uid-1"})
	if err != nil {
		t.Fatal(err)
	}
	if enc.GetKeyId() != st.GetKeyId() {
		t.Errorf("Encrypt's key_id is %q, Status's is %q", enc.GetKeyId(), st.GetKeyId())
	}
	dec, err := client.Decrypt(t.Context(), &v2.DecryptRequest{
		Ciphertext: enc.GetCiphertext(), KeyId: enc.GetKeyId(), Annotations: enc.GetAnnotations(), Uid: "uid-2",
	})
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(dec.GetPlaintext(), seed) {
		t.Error("Decrypt returned another seed")
	}
}

func TestEachKindHasItsCode(t *testing.T) {
	want := map[kek.Kind]codes.Code{
		kek.Unknown:         codes.Unknown,
		kek.Unavailable:     codes.Unavailable,
		kek.Throttled:       codes.ResourceExhausted,
		kek.Unauthenticated: codes.Unauthenticated,
		kek.Denied:          codes.PermissionDenied,
		kek.KeyNotFound:     codes.FailedPrecondition,
		kek.KeyDisabled:     codes.FailedPrecondition,
		kek.Corrupt:         codes.InvalidArgument,
		kek.Invalid:         codes.InvalidArgument,
	}
	got := map[kek.Kind]codes.Code{}
	kind := kek.Unknown
	for ; !strings.HasPrefix(kind.String(), "kind "); kind++ { // up to the last that has a name
		got[kind] = plugin.Code(kind)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("codes (-want +got):\n%s", diff)
	}
	for _, k := range []kek.Kind{-1, kind} {
		if c := plugin.Code(k); c != codes.Unknown {
			t.Errorf("code of kind %d that does not exist: %s", int(k), c)
		}
	}
}

func TestAnErrorReachesTheClientWithItsOperationAndCode(t *testing.T) {
	var ringErr error
	client, _ := serve(t, plugin.Config{Ring: &fakeRing{
		keyID: func() (string, error) { return "", ringErr },
		seal:  func(context.Context, []byte) (localkek.Sealed, error) { return localkek.Sealed{}, ringErr },
		open:  func(context.Context, localkek.Sealed) ([]byte, error) { return nil, ringErr },
	}})
	calls := map[string]func() error{
		"Status": func() error {
			_, err := client.Status(t.Context(), &v2.StatusRequest{})
			return err
		},
		"Encrypt": func() error {
			_, err := client.Encrypt(t.Context(), &v2.EncryptRequest{Plaintext: []byte("seed")})
			return err
		},
		"Decrypt": func() error {
			_, err := client.Decrypt(t.Context(), &v2.DecryptRequest{Ciphertext: []byte("c"), KeyId: "fake:key@1"})
			return err
		},
	}
	for kind := kek.Unknown; kind <= kek.Invalid; kind++ {
		ringErr = &kek.Error{Op: kek.OpUnwrap, Key: kek.KeyRef{ID: "key"}, Kind: kind, Err: errors.New("as injected")}
		for method, call := range calls {
			got := status.Convert(call())
			if got.Code() != plugin.Code(kind) {
				t.Errorf("%s with %s: code %s, want %s", method, kind, got.Code(), plugin.Code(kind))
			}
			if want := fmt.Sprintf("%s: unwrap with key: %s: as injected", method, kind); got.Message() != want {
				t.Errorf("message %q, want %q", got.Message(), want)
			}
		}
	}
}

func TestRecordsBeyondTheLimitsOfKMSv2AreRefused(t *testing.T) {
	within := localkek.Sealed{KeyID: "k", Ciphertext: []byte("c")}
	for _, tt := range []struct {
		name string
		edit func(*localkek.Sealed)
		want string // part of the message; "" is no error
	}{
		{"all at its largest", func(s *localkek.Sealed) {
			s.KeyID, s.Ciphertext = strings.Repeat("k", 1024), make([]byte, 1024)
			s.Annotations = map[string][]byte{"a.b": make([]byte, 32<<10-3)}
		}, ""},
		{"no key_id", func(s *localkek.Sealed) { s.KeyID = "" }, "key_id of 0 bytes"},
		{"a long key_id", func(s *localkek.Sealed) { s.KeyID = strings.Repeat("k", 1025) }, "key_id of 1025 bytes"},
		{"no ciphertext", func(s *localkek.Sealed) { s.Ciphertext = nil }, "ciphertext of 0 bytes"},
		{"a long ciphertext", func(s *localkek.Sealed) { s.Ciphertext = make([]byte, 1025) }, "ciphertext of 1025 bytes"},
		{"long annotations", func(s *localkek.Sealed) {
			s.Annotations = map[string][]byte{"a.b": make([]byte, 16<<10), "c.d": make([]byte, 16<<10)}
		}, "annotations of 32774 bytes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := within
			tt.edit(&s)
			svc := plugin.NewService(plugin.Config{Ring: &fakeRing{
				seal: func(context.Context, []byte) (localkek.Sealed, error) { return s, nil },
			}})
			check := func(method string, err error) {
				t.Helper()
				if tt.want == "" {
					if err != nil {
						t.Errorf("%s: %v", method, err)
					}
					return
				}
				if got := status.Convert(err); got.Code() != codes.InvalidArgument || !strings.Contains(got.Message(), tt.want) {
					t.Errorf("%s: %v, want InvalidArgument with %q", method, err, tt.want)
				}
			}
			_, err := svc.Decrypt(t.Context(), &v2.DecryptRequest{Ciphertext: s.Ciphertext, KeyId: s.KeyID, Annotations: s.Annotations})
			check("Decrypt", err)
			_, err = svc.Encrypt(t.Context(), &v2.EncryptRequest{Plaintext: []byte("seed")})
			check("Encrypt", err)
		})
	}
}

func TestStatusIsLoggedOnlyWhenItChanges(t *testing.T) {
	var log logBuffer
	var ringErr error
	svc := plugin.NewService(plugin.Config{Logger: log.logger(), Ring: &fakeRing{
		keyID: func() (string, error) { return "fake:key@1", ringErr },
	}})
	ask := func(times int, err error) {
		ringErr = err
		for range times {
			svc.Status(t.Context(), &v2.StatusRequest{})
		}
	}
	ask(3, nil)
	if log.String() != "" {
		t.Errorf("logged though Status was always well: %s", log.String())
	}
	ask(3, fmt.Errorf("request 1: %w", kek.Unavailable))
	ask(3, fmt.Errorf("request 2: %w", kek.Unavailable))
	ask(3, fmt.Errorf("request 3: %w", kek.KeyDisabled))
	ask(3, nil)
	if bad, good := log.count("not ready"), log.count("ready to encrypt again"); bad != 2 || good != 1 {
		t.Errorf("%d lines of failure and %d of recovery, want 2 and 1:\n%s", bad, good, log.String())
	}
}

func TestAFailureIsLoggedWithoutPlaintext(t *testing.T) {
	var log logBuffer
	svc := plugin.NewService(plugin.Config{Logger: log.logger(), Ring: &fakeRing{
		seal: func(context.Context, []byte) (localkek.Sealed, error) { return localkek.Sealed{}, kek.Throttled },
		open: func(context.Context, localkek.Sealed) ([]byte, error) { return nil, kek.Corrupt },
	}})
	svc.Encrypt(t.Context(), &v2.EncryptRequest{Plaintext: []byte("the-seed"), Uid: "uid-1"})
	svc.Decrypt(t.Context(), &v2.DecryptRequest{Ciphertext: []byte("the-ciphertext"), KeyId: "fake:key@7", Uid: "uid-2\nforged"})
	for _, want := range []string{
		`"method":"Encrypt","uid":"uid-1","key_id":"","kind":"throttled"`,
		`"method":"Decrypt","uid":"uid-2\nforged","key_id":"fake:key@7","kind":"corrupt"`,
	} {
		if log.count(want) != 1 {
			t.Errorf("log lacks %s:\n%s", want, log.String())
		}
	}
	if log.count("the-seed")+log.count("the-ciphertext") != 0 {
		t.Errorf("log holds request data:\n%s", log.String())
	}
}

func TestAPanicEndsOneCallAndTellsNothing(t *testing.T) {
	var log logBuffer
	ring := &fakeRing{
		seal: func(_ context.Context, seed []byte) (localkek.Sealed, error) { panic(string(seed)) },
		open: func(context.Context, localkek.Sealed) ([]byte, error) {
			var none []byte
			return none[:1:1], nil // a runtime error
		},
	}
	client, _ := serve(t, plugin.Config{Ring: ring, Logger: log.logger()})
	_, err := client.Encrypt(t.Context(), &v2.EncryptRequest{Plaintext: []byte("the-seed")})
	if got := status.Convert(err); got.Code() != codes.Internal || got.Message() != "internal error; see the log of kube-kek" {
		t.Errorf("Encrypt: %v", err)
	}
	_, err = client.Decrypt(t.Context(), &v2.DecryptRequest{Ciphertext: []byte("c"), KeyId: "k"})
	if status.Code(err) != codes.Internal {
		t.Errorf("Decrypt: %v", err)
	}
	if _, err := client.Status(t.Context(), &v2.StatusRequest{}); err != nil {
		t.Errorf("Status after panics: %v", err)
	}
	for _, want := range []string{"/v2.KeyManagementService/Encrypt", `"panic":"string"`, "slice bounds out of range", "(*Service).Encrypt"} {
		if log.count(want) == 0 {
			t.Errorf("log lacks %s:\n%s", want, log.String())
		}
	}
	if log.count("the-seed") != 0 {
		t.Errorf("log holds request data:\n%s", log.String())
	}
}

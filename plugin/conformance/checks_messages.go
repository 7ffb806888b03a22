package conformance

import (
	"context"
	"fmt"
	"slices"

	v2 "k8s.io/kms/apis/v2"
)

// messageChecks come last: they read the error texts of the whole run.
var messageChecks = []check{
	{Info: Info{
		Name: "errors-hide-plaintext", Level: Must, Source: kep + "; " + ours,
		About: "No error's text holds a plaintext or a credential: kube-apiserver logs it, and shows it to users.",
	}, run: errorsHide},
	{Info: Info{
		Name: "errors-are-messages", Level: Should, Source: ours,
		About: "No error's text is a stack trace, is empty, or is longer than 4 KiB: kube-apiserver logs it for each read.",
	}, run: errorsAreMessages},
}

// provoke makes the plugin answer errors, for a run of these checks alone.
func (s *session) provoke(ctx context.Context) error {
	r, err := s.oneRecord(ctx)
	if err != nil {
		return err
	}
	for _, edit := range []func(*v2.DecryptRequest){
		func(q *v2.DecryptRequest) { q.KeyId = "no-such-key" },
		func(q *v2.DecryptRequest) { q.Ciphertext[0] ^= 1 },
		func(q *v2.DecryptRequest) { q.Ciphertext[len(q.Ciphertext)-1] ^= 1 },
		func(q *v2.DecryptRequest) { q.Annotations = nil },
		func(q *v2.DecryptRequest) {
			for name := range q.Annotations {
				q.Annotations[name] = []byte("x")
			}
		},
	} {
		q := r.request()
		if len(q.Ciphertext) == 0 {
			break
		}
		edit(q)
		s.conn.Decrypt(ctx, q) // its error is kept
	}
	for _, n := range []int{1024, 8 << 10, 100 << 10} {
		s.encrypt(ctx, s.conn, s.letters(n))
	}
	return nil
}

func errorsHide(ctx context.Context, s *session) (string, error) {
	if err := s.provoke(ctx); err != nil {
		return "", err
	}
	s.messages.mu.Lock()
	defer s.messages.mu.Unlock()
	for text, method := range s.messages.texts {
		if how, shown := s.secrets.shownIn([]byte(text)); shown {
			return "", breachf("an error of %s (%d bytes) holds a part of a plaintext %s; it goes to kube-apiserver's log", method, len(text), how)
		}
		if what, found := looksSecret(text); found {
			return "", breachf("an error of %s (%d bytes) holds what looks like %s; it goes to kube-apiserver's log (the value is not repeated here)", method, len(text), what)
		}
	}
	return fmt.Sprintf("%d errors with %d different texts hold nothing of what was encrypted", s.messages.calls, len(s.messages.texts)), nil
}

func errorsAreMessages(ctx context.Context, s *session) (string, error) {
	if err := s.provoke(ctx); err != nil {
		return "", err
	}
	s.messages.mu.Lock()
	defer s.messages.mu.Unlock()
	var longest string
	for text, method := range s.messages.texts {
		switch found := stack.FindString(text); {
		case found != "":
			return "", breachf("an error of %s looks like a stack trace (%q); log it, and answer a sentence", method, found)
		case text == "":
			return "", breachf("an error of %s has no text; say what failed and with which key", method)
		case len(text) > 4<<10:
			return "", breachf("an error of %s has %d bytes; kube-apiserver logs it for each read: %.200q", method, len(text), text)
		}
		longest = slices.MaxFunc([]string{longest, text}, func(a, b string) int { return len(a) - len(b) })
	}
	return fmt.Sprintf("%d errors; the longest text has %d bytes", s.messages.calls, len(longest)), nil
}

package lab

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	typedv1 "k8s.io/client-go/kubernetes/typed/core/v1"
)

// Namespace holds the tests' Secrets.
const Namespace = "default"

// Secret returns a Secret whose content follows from its name and a number of
// writes, so that a reader can tell whether it is whole: the number in clear,
// and 1 KiB that only this name and number give.
func Secret(name string, write int) *corev1.Secret {
	body := strings.Builder{}
	for i := range 16 {
		sum := sha256.Sum256(fmt.Appendf(nil, "%s/%d/%d", name, write, i))
		body.WriteString(hex.EncodeToString(sum[:]))
	}
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"by": "lab"}},
		Data:       map[string][]byte{"write": fmt.Append(nil, write), "body": []byte(body.String())},
	}
}

// Whole returns which write a Secret is of, and an error if it is not that write
// to the byte.
func Whole(s *corev1.Secret) (write int, err error) {
	if _, err := fmt.Sscan(string(s.Data["write"]), &write); err != nil {
		return 0, fmt.Errorf("%s is torn: its number of writes is %q", s.Name, s.Data["write"])
	}
	if string(s.Data["body"]) != string(Secret(s.Name, write).Data["body"]) {
		return 0, fmt.Errorf("%s is torn: its body is not that of write %d", s.Name, write)
	}
	return write, nil
}

// Secrets is the client of the tests' namespace.
func (s *APIServer) Secrets() typedv1.SecretInterface { return s.Client.CoreV1().Secrets(Namespace) }

// Create writes Secrets NAME-0 to NAME-(n-1).
func (s *APIServer) Create(name string, n int) {
	s.lab.Helper()
	g := errgroup.Group{}
	g.SetLimit(8)
	for i := range n {
		g.Go(func() error {
			_, err := s.Secrets().Create(s.lab.Context(), Secret(fmt.Sprintf("%s-%d", name, i), 1), metav1.CreateOptions{})
			return err
		})
	}
	if err := g.Wait(); err != nil {
		s.lab.Fatalf("writing Secrets: %v", err)
	}
}

// ReadAll reads each of the tests' Secrets by name, which kube-apiserver answers
// out of etcd and not out of its watch cache. It ends the test unless there are n
// and each is whole.
func (s *APIServer) ReadAll(n int) {
	s.lab.Helper()
	if err := s.TryReadAll(n); err != nil {
		s.lab.Fatalf("reading Secrets: %v", err)
	}
}

// TryReadAll is ReadAll with an error to look at.
func (s *APIServer) TryReadAll(n int) error {
	ctx, cancel := context.WithTimeout(s.lab.Context(), 20*time.Second)
	defer cancel()
	list, err := s.Secrets().List(ctx, metav1.ListOptions{LabelSelector: "by=lab"})
	if err != nil {
		return err
	}
	if len(list.Items) != n {
		return fmt.Errorf("%d Secrets, want %d", len(list.Items), n)
	}
	g := errgroup.Group{}
	g.SetLimit(8)
	for _, item := range list.Items {
		g.Go(func() error {
			secret, err := s.Secrets().Get(ctx, item.Name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			_, err = Whole(secret)
			return err
		})
	}
	return g.Wait()
}

// RewriteAll stores every Secret again as it is, which is how a migration brings
// records under the current key ID. It returns how many there were.
func (s *APIServer) RewriteAll() int {
	s.lab.Helper()
	list, err := s.Client.CoreV1().Secrets("").List(s.lab.Context(), metav1.ListOptions{})
	if err != nil {
		s.lab.Fatalf("listing Secrets to rewrite: %v", err)
	}
	g := errgroup.Group{}
	g.SetLimit(8)
	for _, secret := range list.Items {
		g.Go(func() error {
			_, err := s.Client.CoreV1().Secrets(secret.Namespace).Update(s.lab.Context(), &secret, metav1.UpdateOptions{})
			return err
		})
	}
	if err := g.Wait(); err != nil {
		s.lab.Fatalf("rewriting Secrets: %v", err)
	}
	return len(list.Items)
}

// WaitKeyID waits until Secrets that the apiserver writes are under the key ID,
// by writing one over and over. It returns how long that took.
func (s *APIServer) WaitKeyID(keyID string, limit time.Duration) time.Duration {
	s.lab.Helper()
	const name = "probe"
	defer s.Secrets().Delete(s.lab.Context(), name, metav1.DeleteOptions{})
	return s.lab.Eventually("writes under "+keyID, limit, func() error {
		s.Ready() // asks the plugin for its Status if it has not been asked lately
		s.Secrets().Delete(s.lab.Context(), name, metav1.DeleteOptions{})
		if _, err := s.Secrets().Create(s.lab.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
			return err
		}
		if got := s.lab.Etcd.Secrets()[Namespace+"/"+name].KeyID; got != keyID {
			return fmt.Errorf("etcd holds a new Secret under %s", got)
		}
		return nil
	})
}

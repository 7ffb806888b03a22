// Command demo shows on one machine what kube-kek does: a control plane of real
// parts, a Secret, what etcd holds of it, a rotation, and an outage of the KMS
// with a restart of kube-apiserver in it. It takes about a minute once the parts
// are built, and leaves nothing behind, also after Ctrl-C.
package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kube-kek/kube-kek/e2e/internal/lab"
)

const password = "correct horse battery staple"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(lab.Main(ctx, demo))
}

func demo(h lab.Host) {
	start := time.Now()

	say("A control plane on this machine: etcd, kube-apiserver, kube-kek, and a stand-in for AWS KMS.")
	l := lab.New(h)
	aws := l.StartAWS()
	plugin := l.StartPlugin(lab.Config{KEK: aws.KEK(), Renew: "3s"})
	apiserver := l.StartAPIServer("kube-apiserver", plugin)
	first := status(h, plugin)
	fact("kube-apiserver is ready, and kube-kek's Status names the key that never leaves the KMS:")
	fact("  %s", first)

	say("The same text goes into a ConfigMap and into a Secret. This is what etcd holds of the two:")
	data := map[string]string{"password": password}
	must(h, func() error {
		_, err := apiserver.Client.CoreV1().ConfigMaps(lab.Namespace).Create(h.Context(),
			&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "bank"}, Data: data}, metav1.CreateOptions{})
		return err
	})
	write(h, apiserver, "bank")
	inClear := l.Etcd.Get("/registry/configmaps/default/bank")
	dump("ConfigMap, in clear", inClear[max(0, bytes.Index(inClear, []byte(password))-36):], 80)
	record := l.Etcd.Secrets()["default/bank"]
	dump("Secret, encrypted", record.Raw, 96)
	dump("and further on, in the same record", record.Raw[max(0, bytes.Index(record.Raw, []byte(record.KeyID))-16):], 160)
	fact("kube-apiserver encrypted it under a seed that kube-kek sealed. %d bytes of the record are kube-kek's:", lab.Overhead(record))
	fact("the key ID, the sealed seed, and the local KEK that sealed it, wrapped by the KMS.")

	say("Somebody rotates the key in the KMS. Nothing else is done.")
	aws.Rotate()
	second := first
	took := l.Eventually("Status to move", 30*time.Second, func() error {
		if second = status(h, plugin); second == first {
			return fmt.Errorf("still %s", first)
		}
		return nil
	})
	fact("%s later kube-kek's Status names the new version by itself:", round(took))
	fact("  %s", second)
	took = apiserver.WaitKeyID(second, 90*time.Second)
	write(h, apiserver, "bank-2")
	records := l.Etcd.Secrets()
	fact("%s later kube-apiserver has seen it. The new Secret is under ...%s,", round(took), tail(records["default/bank-2"].KeyID))
	fact("the old one is still under ...%s, and both are read:", tail(records["default/bank"].KeyID))
	read(h, apiserver, "bank", "bank-2")

	say("The KMS goes silent: every byte to it is swallowed. And kube-apiserver crashes.")
	const outage = 25 * time.Second
	pid := plugin.PID()
	aws.Hang()
	cut := time.Now()
	took = apiserver.Restart()
	fact("kube-apiserver was killed and started again; it is ready %s later.", round(took))
	fact("With most KMS plugins it would read no Secret now, and would not become ready.")
	read(h, apiserver, "bank", "bank-2")
	write(h, apiserver, "bank-3")
	read(h, apiserver, "bank-3")
	for i := 4; time.Since(cut) < outage; i++ {
		select {
		case <-h.Context().Done():
			h.Fatalf("%v", h.Context().Err())
		case <-time.After(5 * time.Second):
		}
		name := fmt.Sprintf("bank-%d", i)
		write(h, apiserver, name)
		read(h, apiserver, name)
	}
	fact("kube-kek may go on like this for %s more: what is left of the lease that its configuration gives it.", round(plugin.LeaseLeft(second)))

	say("The KMS is back, after %s.", round(time.Since(cut)))
	aws.Restore()
	took = l.Eventually("the lease to be renewed", 30*time.Second, func() error {
		if left := plugin.LeaseLeft(second); left < 12*time.Hour-5*time.Second {
			return fmt.Errorf("%s left", left)
		}
		return nil
	})
	fact("%s later the lease is renewed; kube-kek is still the process %d and nobody restarted it.", round(took), pid)

	say("That took %s. Everything that was started is stopped and removed.", round(time.Since(start)))
}

func status(h lab.Host, p *lab.Plugin) string {
	keyID, err := p.Status()
	if err != nil {
		h.Fatalf("Status: %v", err)
	}
	return keyID
}

func write(h lab.Host, s *lab.APIServer, name string) {
	must(h, func() error {
		_, err := s.Secrets().Create(h.Context(), &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Name: name}, StringData: map[string]string{"password": password},
		}, metav1.CreateOptions{})
		return err
	})
}

func read(h lab.Host, s *lab.APIServer, names ...string) {
	for _, name := range names {
		must(h, func() error {
			secret, err := s.Secrets().Get(h.Context(), name, metav1.GetOptions{})
			if err == nil {
				fact("  Secret %-7s password: %s", name, secret.Data["password"])
			}
			return err
		})
	}
}

func must(h lab.Host, do func() error) {
	if err := do(); err != nil {
		h.Fatalf("%v", err)
	}
}

// dump shows the first bytes of what etcd holds.
func dump(what string, b []byte, n int) {
	fact("%s:", what)
	for line := range strings.Lines(hex.Dump(b[:min(n, len(b))])) {
		fact("  %s", strings.TrimSpace(line))
	}
}

func say(format string, args ...any)  { fmt.Printf("\n"+format+"\n", args...) }
func fact(format string, args ...any) { fmt.Printf("    "+format+"\n", args...) }

func round(d time.Duration) time.Duration { return d.Round(time.Second / 10) }

func tail(s string) string { return s[max(0, len(s)-36):] }

package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/kube-kek/kube-kek/e2e/internal/lab"
)

// kube-apiserver stops writing 3 minutes after the last good word of its plugin,
// and one that starts without a working plugin reads no Secret at all. So four
// minutes without a KMS, with an apiserver restart in them, are what a plugin
// that asks its KMS for each seed cannot outlive.
func TestSecretsAreReadAndWrittenThroughFourMinutesWithoutAKMSAndAnAPIServerRestart(t *testing.T) {
	t.Parallel()
	const (
		outage = 4*time.Minute + 20*time.Second
		renew  = 5 * time.Second
	)
	l := lab.New(t)
	aws := l.StartAWS()
	plugin := l.StartPlugin(lab.Config{KEK: aws.KEK(), Renew: renew.String()})
	apiserver := l.StartAPIServer("apiserver", plugin)

	secrets := 0
	write := func(name string, n int) {
		t.Helper()
		apiserver.Create(name, n)
		secrets += n
		apiserver.ReadAll(secrets)
	}
	write("before", 20)
	apiserver.Restart() // so that there is a seed that only etcd and the plugin know
	write("before-too", 20)
	pid := plugin.PID()
	keyID, err := plugin.Status()
	if err != nil {
		t.Fatal(err)
	}

	aws.Reset()
	start := time.Now()
	for i := 0; time.Since(start) < outage/2; i++ {
		write(fmt.Sprintf("reset-%d", i), 1)
		time.Sleep(time.Second)
	}
	t.Logf("after %s of connections that are reset %d Secrets are read and written", since(start), secrets)

	aws.Hang()
	ready := apiserver.Restart()
	write("restarted", 20)
	t.Logf("kube-apiserver restarted, ready in %s with the KMS silent; every Secret read, new ones written", ready.Round(time.Second/10))
	if seeds := lab.Tally(l.Etcd.Secrets()).Seeds; seeds != 3 {
		t.Errorf("etcd holds %d seeds, want 3, one for each start of the apiserver", seeds)
	}
	for i := 0; time.Since(start) < outage; i++ {
		write(fmt.Sprintf("silent-%d", i), 1)
		time.Sleep(time.Second)
	}
	left := plugin.LeaseLeft(keyID)
	if left >= 12*time.Hour-outage+10*time.Second {
		t.Errorf("the lease still has %s: nothing shows that the KMS is gone", left)
	}
	if lost := plugin.Metrics().Sum("kube_kek_kms_requests_total", "result", "unavailable", "purpose", "probe"); lost == 0 {
		t.Error("no probe of the KMS is counted as unavailable")
	}
	t.Logf("after %s %d Secrets are read and written, the lease has %s left", since(start), secrets, left.Round(time.Second))

	aws.Restore()
	back := l.Eventually("the lease to be renewed", time.Minute, func() error {
		if left := plugin.LeaseLeft(keyID); left < 12*time.Hour-2*renew {
			return fmt.Errorf("%s left", left)
		}
		return nil
	})
	if plugin.PID() != pid || !plugin.Running() {
		t.Error("the plugin was restarted")
	}
	write("after", 20)
	apiserver.Restart()
	write("after-restart", 20)
	t.Logf("KMS back: lease renewed after %s, no restart of the plugin needed, %d Secrets whole", back.Round(time.Second/10), secrets)

	if now, err := plugin.Status(); err != nil || now != keyID {
		t.Errorf("Status moved from %q to %q: %v", keyID, now, err)
	}
	if count := lab.Tally(l.Etcd.Secrets()); count.KeyIDs[keyID] != secrets || count.LocalKEKs != 1 {
		t.Errorf("etcd holds %+v, want %d records, all under %s and one local KEK", count, secrets, keyID)
	}
}

func since(start time.Time) time.Duration { return time.Since(start).Round(time.Second) }

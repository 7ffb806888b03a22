package e2e

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/kube-kek/kube-kek/e2e/internal/lab"
)

// Moving from one home to another is a change of the configuration and a
// rewrite: the old home only decrypts, until etcd proves that nothing needs it.
func TestSecretsMoveFromAKeysetToAWSAndTheKeysetCanBeDeleted(t *testing.T) {
	t.Parallel()
	const secrets = 50
	l := lab.New(t)
	keyset, aws := l.CreateKeyset("keyset.json"), l.StartAWS()
	plugin := l.StartPlugin(lab.Config{KEK: keyset.KEK()})
	apiserver := l.StartAPIServer("apiserver", plugin)
	apiserver.Create("secret", secrets)
	old, err := plugin.Status()
	if err != nil {
		t.Fatal(err)
	}

	plugin.Configure(lab.Config{KEK: aws.KEK(), Previous: []lab.KEK{keyset.KEK()}})
	plugin.Restart()
	current, err := plugin.Status()
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(old, "tink-keyset:") || !strings.HasPrefix(current, "awskms:") {
		t.Errorf("Status moved from %q to %q, want from the keyset to AWS", old, current)
	}
	took := apiserver.WaitKeyID(current, 90*time.Second)
	apiserver.ReadAll(secrets)
	if count := lab.Tally(l.Etcd.Secrets()); count.KeyIDs[old] != secrets {
		t.Errorf("before the rewrite etcd holds %+v, want all %d under %s", count, secrets, old)
	}
	t.Logf("kube-apiserver writes under %s %s after the plugin did", current, took.Round(time.Second/10))

	// A cold apiserver reads records of the home that only decrypts.
	apiserver.Restart()
	apiserver.ReadAll(secrets)
	apiserver.RewriteAll()
	if count := lab.Tally(l.Etcd.Secrets()); count.KeyIDs[current] != secrets || count.Records != secrets {
		t.Fatalf("after the rewrite etcd holds %+v, want all %d under %s", count, secrets, current)
	}

	plugin.Configure(lab.Config{KEK: aws.KEK()})
	if err := os.Remove(keyset.Path); err != nil {
		t.Fatal(err)
	}
	plugin.Restart()
	apiserver.Restart()
	apiserver.ReadAll(secrets)
	t.Logf("%d Secrets rewritten, the keyset deleted, all read by a cold kube-apiserver", secrets)
}

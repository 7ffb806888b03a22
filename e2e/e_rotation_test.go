package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/kube-kek/kube-kek/e2e/internal/lab"
)

// A rotation in the KMS is all that an operator does: the key ID moves, new
// writes use it, and old Secrets stay readable under the version that they were
// written with.
func TestARotationOfTheKEKMovesNewWritesToANewKeyIDAndLeavesOldSecretsReadable(t *testing.T) {
	t.Parallel()
	homes := []struct {
		name string
		home func(*lab.Lab) (kek lab.KEK, rotate func())
	}{
		{"AWS KMS", func(l *lab.Lab) (lab.KEK, func()) { aws := l.StartAWS(); return aws.KEK(), aws.Rotate }},
		{"a Tink keyset", func(l *lab.Lab) (lab.KEK, func()) { k := l.CreateKeyset("keyset.json"); return k.KEK(), k.Rotate }},
	}
	for _, home := range homes {
		t.Run(home.name, func(t *testing.T) {
			t.Parallel()
			const secrets = 10
			const renew = 2 * time.Second
			l := lab.New(t)
			kek, rotate := home.home(l)
			plugin := l.StartPlugin(lab.Config{KEK: kek, Renew: renew.String()})
			apiserver := l.StartAPIServer("apiserver", plugin)
			apiserver.Create("old", secrets)
			old, err := plugin.Status()
			if err != nil {
				t.Fatal(err)
			}

			rotate()
			current := old
			seen := l.Eventually("Status to move to another key ID", 30*time.Second, func() (err error) {
				if current, err = plugin.Status(); err == nil && current == old {
					err = fmt.Errorf("still %s", old)
				}
				return err
			})
			t.Logf("rotated: Status moved from %s to %s within %s", old, current, seen.Round(time.Second/10))

			took := apiserver.WaitKeyID(current, 90*time.Second)
			apiserver.Create("new", secrets)
			count := lab.Tally(l.Etcd.Secrets())
			if count.KeyIDs[old] != secrets || count.KeyIDs[current] != secrets || count.Records != 2*secrets {
				t.Errorf("etcd holds %+v, want %d records under %s and as many under %s", count, secrets, old, current)
			}
			t.Logf("kube-apiserver writes under the new key ID %s after the plugin showed it", took.Round(time.Second/10))

			// Old and new are read by an apiserver and a plugin that know neither.
			plugin.Restart()
			apiserver.Restart()
			apiserver.ReadAll(2 * secrets)
			if now, err := plugin.Status(); err != nil || now != current {
				t.Errorf("after a restart Status says %q, %v; want %q", now, err, current)
			}
			if n := apiserver.RewriteAll(); n != 2*secrets {
				t.Errorf("%d Secrets rewritten, want %d", n, 2*secrets)
			}
			if count := lab.Tally(l.Etcd.Secrets()); count.KeyIDs[current] != 2*secrets {
				t.Errorf("after every Secret was rewritten etcd holds %+v, want all %d under %s", count, 2*secrets, current)
			}
			apiserver.ReadAll(2 * secrets)
		})
	}
}

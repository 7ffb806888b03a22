// Package storage holds the plugin against kube-apiserver's own storage code,
// which encrypts what goes to etcd and decrypts what comes from it, without a
// kube-apiserver or an etcd around it.
package storage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/server/options/encryptionconfig"
	"k8s.io/apiserver/pkg/storage/value"
	"k8s.io/apiserver/pkg/storage/value/encrypt/envelope/kmsv2"

	"github.com/kube-kek/kube-kek/e2e/internal/lab"
	"github.com/kube-kek/kube-kek/kek/awskms/awskmstest"
)

var homes = []struct {
	name string
	home func(*lab.Lab) (kek lab.KEK, rotate func())
}{
	{"AWS KMS", func(l *lab.Lab) (lab.KEK, func()) { aws := l.StartAWSDirect(); return aws.KEK(), aws.Rotate }},
	{"a Tink keyset", func(l *lab.Lab) (lab.KEK, func()) { k := l.CreateKeyset("keyset.json"); return k.KEK(), k.Rotate }},
}

func TestWhatIsStoredComesBackAndBelongsToItsEtcdKeyAlone(t *testing.T) {
	t.Parallel()
	for _, home := range homes {
		t.Run(home.name, func(t *testing.T) {
			t.Parallel()
			l := lab.Bare(t)
			kek, _ := home.home(l)
			plugin := l.StartPlugin(lab.Config{KEK: kek})
			s := load(t, l, plugin)
			s.mustBeHealthy(t)

			stored := s.store(t, "a", "plain text")
			if prefix := "k8s:enc:kms:v2:" + s.provider + ":"; !bytes.HasPrefix(stored, []byte(prefix)) {
				t.Errorf("what is stored starts %.40q, not %q", stored, prefix)
			}
			if bytes.Contains(stored, []byte("plain text")) {
				t.Error("what is stored holds the plain text")
			}
			s.wantRead(t, "a", stored, "plain text", fresh)
			if _, _, err := s.FromStorage(t, "b", stored); err == nil {
				t.Error("a record that was moved to another etcd key was read")
			}
			if again := s.store(t, "a", "plain text"); bytes.Equal(stored, again) {
				t.Error("two writes of the same Secret store the same bytes")
			}
		})
	}
}

func TestAColdAPIServerAndAColdPluginReadWhatWasStoredBefore(t *testing.T) {
	t.Parallel()
	for _, home := range homes {
		t.Run(home.name, func(t *testing.T) {
			t.Parallel()
			l := lab.Bare(t)
			kek, _ := home.home(l)
			plugin := l.StartPlugin(lab.Config{KEK: kek})
			stored := load(t, l, plugin).store(t, "a", "before")

			plugin.Kill() // leaves its socket behind
			plugin.Start()
			plugin.WaitServing()
			// Another seed under the same key ID does not make a record stale.
			load(t, l, plugin).wantRead(t, "a", stored, "before", fresh)
		})
	}
}

func TestARotationMakesOldRecordsStaleAndARewriteMakesThemFresh(t *testing.T) {
	t.Parallel()
	for _, home := range homes {
		t.Run(home.name, func(t *testing.T) {
			t.Parallel()
			l := lab.Bare(t)
			kek, rotate := home.home(l)
			plugin := l.StartPlugin(lab.Config{KEK: kek, Renew: "1s"})
			before := load(t, l, plugin)
			stored := before.store(t, "a", "old")
			old, err := plugin.Status()
			if err != nil {
				t.Fatal(err)
			}

			rotate()
			l.Eventually("Status to move", 30*time.Second, func() error {
				now, err := plugin.Status()
				if err == nil && now == old {
					err = fmt.Errorf("still %s", old)
				}
				return err
			})
			after := load(t, l, plugin)
			after.wantRead(t, "a", stored, "old", stale)
			rewritten := after.store(t, "a", "old")
			after.wantRead(t, "a", rewritten, "old", fresh)

			// The apiserver that has not noticed yet reads what the other wrote.
			before.wantRead(t, "a", rewritten, "old", stale)
		})
	}
}

func TestAnAPIServerThatStartsBeforeThePluginIsWellOnceThePluginIs(t *testing.T) {
	t.Parallel()
	l := lab.Bare(t)
	plugin := l.NewPlugin(lab.Config{KEK: l.CreateKeyset("keyset.json").KEK()})
	s := load(t, l, plugin)
	if err := s.health(); err == nil {
		t.Error("healthy without a plugin")
	}
	if _, err := s.ToStorage(t, "a", "too early"); err == nil {
		t.Error("stored without a plugin")
	}
	plugin.Start()
	s.mustBeHealthy(t)
	s.wantRead(t, "a", s.store(t, "a", "in time"), "in time", fresh)
}

func TestAnAPIServerThatStartsDuringAnOutageOfTheKMSReadsAndWrites(t *testing.T) {
	t.Parallel()
	l := lab.Bare(t)
	aws := l.StartAWSDirect()
	plugin := l.StartPlugin(lab.Config{KEK: aws.KEK(), Renew: "1s"})
	stored := load(t, l, plugin).store(t, "a", "before")

	aws.Server.SetFault(awskmstest.Fault{Hang: true})
	l.Eventually("the plugin to notice the outage", 30*time.Second, func() error {
		if plugin.Metrics().Sum("kube_kek_kms_requests_total", "result", "unavailable") == 0 {
			return errors.New("no request is counted as unavailable")
		}
		return nil
	})
	s := load(t, l, plugin)
	s.mustBeHealthy(t)
	s.wantRead(t, "a", stored, "before", fresh)
	s.wantRead(t, "b", s.store(t, "b", "during"), "during", fresh)
}

// A plugin that must not be used says so with an error, never with a sick
// healthz and a key ID: only then does kube-apiserver stop writing, three
// minutes after the last good word.
func TestWritesStopThreeMinutesAfterTheKMSHasSaidNoAndNotBefore(t *testing.T) {
	t.Parallel()
	l := lab.Bare(t)
	aws := l.StartAWSDirect()
	plugin := l.StartPlugin(lab.Config{KEK: aws.KEK(), Renew: "1s"})

	start := time.Now()
	clock := newClock(start)
	t.Cleanup(kmsv2.SetNowFuncForTests(provider(t), clock.now))
	s := load(t, l, plugin)
	stored := s.store(t, "a", "before")

	aws.Disable()
	l.Eventually("Status to be an error", 30*time.Second, func() error {
		if _, err := plugin.Status(); err == nil {
			return errors.New("it is well")
		}
		return nil
	})
	clock.set(start.Add(3 * time.Minute))
	s.wantRead(t, "b", s.store(t, "b", "in time"), "in time", fresh)
	clock.set(start.Add(3*time.Minute + time.Nanosecond))
	if _, err := s.ToStorage(t, "b", "too late"); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("a write after three minutes: %v, want that the seed has expired", err)
	}
	// Reads of what is in the apiserver's own memory go on: it asks nobody.
	s.wantRead(t, "a", stored, "before", fresh)

	cold := load(t, l, plugin)
	if err := cold.health(); err == nil {
		t.Error("an apiserver that starts now is healthy")
	}
	if _, _, err := cold.FromStorage(t, "a", stored); err == nil {
		t.Error("an apiserver that starts now reads")
	}

	aws.Enable()
	cold.mustBeHealthy(t)
	cold.wantRead(t, "a", stored, "before", fresh)
	cold.store(t, "b", "again")
	l.Eventually("writes of the apiserver that was there all the time", 40*time.Second, func() error {
		s.health() // its last good answer, from before, is kept for 20 s
		_, err := s.ToStorage(t, "b", "again")
		return err
	})
}

const (
	fresh = false
	stale = true
)

// storage is what kube-apiserver makes of an EncryptionConfiguration: one start
// of it, with a seed of its own.
type storage struct {
	value.Transformer
	provider string
	check    func(*http.Request) error
}

// provider is a name for the test's provider; kube-apiserver's code keeps some
// state by it.
func provider(t *testing.T) string {
	return strings.ToLower(strings.NewReplacer("/", "-", "_", "-").Replace(t.Name()))
}

func load(t *testing.T, l *lab.Lab, p *lab.Plugin) *storage {
	t.Helper()
	name := provider(t)
	file := l.Write("encryption.yaml", []byte(lab.Encryption(name, p.Socket)))
	c, err := encryptionconfig.LoadEncryptionConfig(t.Context(), file, true, "storage-test")
	if err != nil {
		t.Fatal(err)
	}
	return &storage{c.Transformers[schema.GroupResource{Resource: "secrets"}], name, c.HealthChecks[0].Check}
}

func etcdKey(name string) value.Context {
	return value.DefaultContext("/registry/secrets/default/" + name)
}

// ToStorage and FromStorage are the two ways, under the etcd key of a Secret.
func (s *storage) ToStorage(t *testing.T, name, plain string) ([]byte, error) {
	return s.TransformToStorage(t.Context(), []byte(plain), etcdKey(name))
}

func (s *storage) FromStorage(t *testing.T, name string, stored []byte) (plain []byte, stale bool, err error) {
	return s.TransformFromStorage(t.Context(), stored, etcdKey(name))
}

func (s *storage) store(t *testing.T, name, plain string) []byte {
	t.Helper()
	stored, err := s.ToStorage(t, name, plain)
	if err != nil {
		t.Fatalf("storing: %v", err)
	}
	return stored
}

func (s *storage) wantRead(t *testing.T, name string, stored []byte, want string, wantStale bool) {
	t.Helper()
	plain, isStale, err := s.FromStorage(t, name, stored)
	if err != nil {
		t.Errorf("reading: %v", err)
	} else if string(plain) != want || isStale != wantStale {
		t.Errorf("read %q, stale %v; want %q, %v", plain, isStale, want, wantStale)
	}
}

// health is what /readyz asks; kube-apiserver keeps a bad answer for 3 s.
func (s *storage) health() error {
	r, err := http.NewRequestWithContext(context.Background(), http.MethodGet, "/readyz", nil)
	if err != nil {
		return err
	}
	return s.check(r)
}

func (s *storage) mustBeHealthy(t *testing.T) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		err := s.health()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not healthy: %v", err)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

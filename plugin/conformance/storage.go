package conformance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/server/options/encryptionconfig"
	"k8s.io/apiserver/pkg/storage/value"
)

var storageChecks = []check{
	{Info: Info{
		Name: "storage", Level: Must, Source: "k8s.io/apiserver: its own code for storage at rest, as a library",
		About: "kube-apiserver's own code is ready, stores an object through the plugin and reads it, under its etcd key alone, and does not call it stale.",
	}, unless: accepted, run: storageRoundTrip},
	{Info: Info{
		Name: "storage-restart", Level: Must, Source: "k8s.io/apiserver: its own code for storage at rest, as a library",
		About: "A kube-apiserver that starts afterwards reads what the one before it stored, and does not call it stale.",
	}, unless: append([]string{"storage"}, accepted...), run: storageRestart},
}

// providerName is ours in the EncryptionConfiguration.
const providerName = "conformance"

// apiserver is one start of kube-apiserver, as far as encryption at rest goes:
// its own code from an EncryptionConfiguration, with a seed of its own.
type apiserver struct {
	value.Transformer
	check func(*http.Request) error
	stop  context.CancelFunc
}

// start loads an EncryptionConfiguration as kube-apiserver does when it starts:
// it asks Status and then Encrypt, and starts all the same where these fail.
func (s *session) start(ctx context.Context) (*apiserver, error) {
	dir, err := os.MkdirTemp("", "conformance-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "encryption.yaml")
	text := fmt.Sprintf(`apiVersion: apiserver.config.k8s.io/v1
kind: EncryptionConfiguration
resources:
- resources: [secrets]
  providers:
  - kms: {apiVersion: v2, name: %s, endpoint: %q, timeout: %s}
`, providerName, s.url(), callTimeout)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	c, err := encryptionconfig.LoadEncryptionConfig(ctx, file, true, providerName)
	if err != nil {
		cancel()
		return nil, breachf("kube-apiserver does not take the endpoint: %w", err)
	}
	return &apiserver{c.Transformers[schema.GroupResource{Resource: "secrets"}], c.HealthChecks[0].Check, cancel}, nil
}

// ready is what /readyz asks. kube-apiserver keeps a bad answer for 3 s.
func (a *apiserver) ready(ctx context.Context) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "/readyz", nil)
	if err != nil {
		return err
	}
	return a.check(r)
}

// stored is an object in etcd.
type stored struct {
	key   string
	plain []byte
	bytes []byte
}

// write stores an object of random content.
func (s *session) write(ctx context.Context, a *apiserver, name string) (stored, error) {
	o := stored{key: "/registry/secrets/default/" + name, plain: s.letters(200)}
	var err error
	o.bytes, err = a.TransformToStorage(ctx, o.plain, value.DefaultContext(o.key))
	if err != nil {
		return o, fmt.Errorf("kube-apiserver cannot write: %w", err)
	}
	return o, nil
}

// reads reads an object back and says whether it is stale.
func (a *apiserver) reads(ctx context.Context, o stored) (stale bool, err error) {
	plain, stale, err := a.TransformFromStorage(ctx, o.bytes, value.DefaultContext(o.key))
	if err != nil {
		return false, fmt.Errorf("kube-apiserver cannot read: %w", err)
	}
	if !bytes.Equal(plain, o.plain) {
		return false, errors.New("kube-apiserver reads something else than was written")
	}
	return stale, nil
}

// readsFresh reads an object that must not be stale.
func (a *apiserver) readsFresh(ctx context.Context, o stored) error {
	stale, err := a.reads(ctx, o)
	if err == nil && stale {
		err = breachf("kube-apiserver calls what was just written stale: its key_id is not that of Status; a migration would never end")
	}
	return err
}

func storageRoundTrip(ctx context.Context, s *session) (string, error) {
	a, err := s.start(ctx)
	if err != nil {
		return "", err
	}
	defer a.stop()
	if err := a.ready(ctx); err != nil {
		return "", breachf("kube-apiserver is not ready: %w", err)
	}
	o, err := s.write(ctx, a, "a")
	if err != nil {
		return "", err
	}
	if how, shown := only(o.plain).shownIn(o.bytes); shown {
		return "", breachf("what is stored shows the object %s", how)
	}
	if err := a.readsFresh(ctx, o); err != nil {
		return "", err
	}
	moved := o
	moved.key += "-moved"
	if _, err := a.reads(ctx, moved); err == nil {
		return "", breachf("an object that was moved to another etcd key can be read")
	}
	return fmt.Sprintf("kube-apiserver is ready; %d bytes were stored as %d and read back, fresh", len(o.plain), len(o.bytes)), nil
}

func storageRestart(ctx context.Context, s *session) (string, error) {
	first, err := s.start(ctx)
	if err != nil {
		return "", err
	}
	o, err := s.write(ctx, first, "a")
	first.stop()
	if err != nil {
		return "", err
	}
	second, err := s.start(ctx)
	if err != nil {
		return "", err
	}
	defer second.stop()
	if err := second.ready(ctx); err != nil {
		return "", breachf("kube-apiserver is not ready: %w", err)
	}
	if err := second.readsFresh(ctx, o); err != nil {
		return "", err
	}
	return "a second start read what the first had stored, fresh", nil
}

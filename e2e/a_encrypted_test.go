package e2e

import (
	"bytes"
	"strings"
	"testing"
	"time"

	kmstypes "k8s.io/apiserver/pkg/storage/value/encrypt/envelope/kmsv2/v2"

	"github.com/kube-kek/kube-kek/e2e/internal/lab"
)

// What etcd holds of a Secret is ciphertext under a key ID that names the KEK,
// and the apiserver reads it back, with and without what it has in memory.
func TestSecretsAreStoredUnderTheKeyIDOfTheirHomeAndReadBack(t *testing.T) {
	t.Parallel()
	homes := []struct {
		name string
		kek  func(*lab.Lab) lab.KEK
	}{
		{"AWS KMS", func(l *lab.Lab) lab.KEK { return l.StartAWS().KEK() }},
		{"a Tink keyset", func(l *lab.Lab) lab.KEK { return l.CreateKeyset("keyset.json").KEK() }},
	}
	for _, home := range homes {
		t.Run(home.name, func(t *testing.T) {
			t.Parallel()
			const secrets = 20
			l := lab.New(t)
			kek := home.kek(l)
			plugin := l.StartPlugin(lab.Config{KEK: kek})
			apiserver := l.StartAPIServer("apiserver", plugin)

			apiserver.Create("secret", secrets)
			apiserver.ReadAll(secrets)

			keyID, err := plugin.Status()
			if err != nil {
				t.Fatal(err)
			}
			scheme, _, _ := strings.Cut(kek.URI, ":")
			if want := scheme + ":"; !strings.HasPrefix(keyID, want) {
				t.Errorf("key ID %q does not start with the scheme of its home, %q", keyID, want)
			}
			records := l.Etcd.Secrets()
			overhead := 0
			for name, r := range records {
				switch {
				case r.Provider != lab.ProviderName:
					t.Errorf("%s is under the provider %q, want %q", name, r.Provider, lab.ProviderName)
				case r.KeyID != keyID:
					t.Errorf("%s is under key ID %q, Status says %q", name, r.KeyID, keyID)
				case r.EncryptedDEKSourceType != kmstypes.EncryptedDEKSourceType_HKDF_SHA256_XNONCE_AES_GCM_SEED:
					t.Errorf("%s: what the plugin sealed is a %s, want a seed", name, r.EncryptedDEKSourceType)
				case bytes.Contains(r.Raw, lab.Secret("secret-0", 1).Data["body"][:64]):
					t.Errorf("%s holds plain text", name)
				}
				overhead = lab.Overhead(r)
			}
			if count := lab.Tally(records); count.Records != secrets || count.Seeds != 1 || count.LocalKEKs != 1 {
				t.Errorf("etcd holds %+v, want %d records under one seed and one local KEK", count, secrets)
			}
			if overhead > 420 {
				t.Errorf("the plugin adds %d bytes to each record, want at most 420", overhead)
			}
			t.Logf("%d Secrets under %s; the plugin adds %d bytes to each", secrets, keyID, overhead)

			took := apiserver.Restart()
			apiserver.ReadAll(secrets)
			t.Logf("kube-apiserver restarted, ready in %s, all read again", took.Round(time.Second/10))
		})
	}
}

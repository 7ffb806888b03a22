package conformance_test

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"time"

	v2 "k8s.io/kms/apis/v2"
)

// kms is a KMS in memory.
type kms struct {
	mu             sync.Mutex
	keys           [][]byte
	down, disabled bool
	calls          int
	flaps          bool // for a while after a rotation it says now this, now that
	rotated        time.Time
}

// flapping is how long it says one thing, and four times that how long all.
const flapping = 250 * time.Millisecond

func (k *kms) do(f func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	f()
}

func (k *kms) rotate() {
	k.do(func() { k.keys, k.rotated = append(k.keys, randomBytes(32)), time.Now() })
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

var errDown, errDisabled, errNoKey = errors.New("no answer from the KMS"), errors.New("the key is disabled"), errors.New("no such key version")

// get returns a version of the key, the current one for 0.
func (k *kms) get(version int) (key []byte, _ int, err error) {
	k.do(func() {
		k.calls++
		if version == 0 {
			version = len(k.keys)
			if n := time.Since(k.rotated) / flapping; k.flaps && version > 1 && n < 4 && n%2 == 1 {
				version--
			}
		}
		switch {
		case k.down:
			err = errDown
		case k.disabled:
			err = errDisabled
		case version < 1 || version > len(k.keys):
			err = errNoKey
		default:
			key = k.keys[version-1]
		}
	})
	return key, version, err
}

// toy is a correct KMS v2 plugin. It keeps the keys that it has seen in memory,
// and asks the KMS every few milliseconds which is current and whether it may.
type toy struct {
	v2.UnimplementedKeyManagementServiceServer
	kms *kms

	mu      sync.Mutex
	known   map[string]cipher.AEAD // by key_id
	current string
	why     error // why there is no current key
}

const saltName = "salt.toy.example.com"

func newToy(k *kms) *toy { return &toy{kms: k, known: map[string]cipher.AEAD{}, why: errDown} }

func (p *toy) run(ctx context.Context) {
	for ctx.Err() == nil {
		p.refresh()
		time.Sleep(10 * time.Millisecond)
	}
}

func (p *toy) refresh() {
	key, version, err := p.kms.get(0)
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case err == nil:
		p.current = keyID(version)
		p.known[p.current], p.why = newAEAD(key), nil
	case errors.Is(err, errDisabled):
		p.known, p.current, p.why = map[string]cipher.AEAD{}, "", err
	case p.current == "":
		p.why = err
	}
}

func keyID(version int) string { return fmt.Sprintf("toy:key@%d", version) }

func newAEAD(key []byte) cipher.AEAD {
	block, _ := aes.NewCipher(key)
	aead, _ := cipher.NewGCMWithRandomNonce(block)
	return aead
}

func (p *toy) Status(context.Context, *v2.StatusRequest) (*v2.StatusResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.current == "" {
		return nil, fmt.Errorf("not ready: %w", p.why)
	}
	return &v2.StatusResponse{Version: "v2", Healthz: "ok", KeyId: p.current}, nil
}

func (p *toy) Encrypt(_ context.Context, r *v2.EncryptRequest) (*v2.EncryptResponse, error) {
	p.mu.Lock()
	id, aead := p.current, p.known[p.current]
	p.mu.Unlock()
	if aead == nil || len(r.Plaintext) == 0 || len(r.Plaintext) > 900 {
		return nil, fmt.Errorf("cannot encrypt %d bytes: not ready, or not 1 to 900", len(r.Plaintext))
	}
	salt := randomBytes(8)
	return &v2.EncryptResponse{
		Ciphertext: aead.Seal(nil, nil, r.Plaintext, append([]byte(id), salt...)), KeyId: id,
		Annotations: map[string][]byte{saltName: salt},
	}, nil
}

func (p *toy) Decrypt(_ context.Context, r *v2.DecryptRequest) (*v2.DecryptResponse, error) {
	salt, ok := r.Annotations[saltName]
	var version int
	if n, _ := fmt.Sscanf(r.KeyId, "toy:key@%d", &version); n != 1 || r.KeyId != keyID(version) || version == 0 || !ok || len(r.Annotations) != 1 {
		return nil, errors.New("not a record of this plugin")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.known[r.KeyId] == nil {
		key, _, err := p.kms.get(version)
		if err != nil {
			return nil, fmt.Errorf("asking for %s: %w", r.KeyId, err)
		}
		p.known[r.KeyId] = newAEAD(key)
	}
	plaintext, err := p.known[r.KeyId].Open(nil, nil, r.Ciphertext, append([]byte(r.KeyId), salt...))
	if err != nil {
		return nil, errors.New("the record does not authenticate")
	}
	return &v2.DecryptResponse{Plaintext: plaintext}, nil
}

package bench

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	v2 "k8s.io/kms/apis/v2"
)

// seedSize is that of the DEK seeds that kube-apiserver has encrypted, in bytes.
const seedSize = 32

// uid is as long as those of kube-apiserver, a UUID, and says who calls.
const uid = "kubectl-kek-bench-000000000000000000"

// Dial makes a client of unix:///ABSOLUTE/PATH. As kube-apiserver's, its calls wait
// for a service that is not there, for as long as they have. It comes back to one
// that was restarted within 100 ms, where gRPC's own default waits for a second and
// more: it is the service that is measured. Nothing is connected before the first
// call.
func Dial(endpoint string) (*grpc.ClientConn, error) {
	return grpc.NewClient(endpoint,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 10 * time.Millisecond, Multiplier: 1.6, MaxDelay: 100 * time.Millisecond},
			MinConnectTimeout: CallTimeout,
		}))
}

// Status asks for the plugin's state.
func Status(kms v2.KeyManagementServiceClient) Call {
	return func(ctx context.Context) error {
		_, err := kms.Status(ctx, &v2.StatusRequest{})
		return err
	}
}

// Encrypt has one random seed encrypted again and again.
func Encrypt(kms v2.KeyManagementServiceClient) Call {
	seed := newSeed()
	return func(ctx context.Context) error {
		_, err := kms.Encrypt(ctx, &v2.EncryptRequest{Plaintext: seed, Uid: uid})
		return err
	}
}

// A Record is a seed and what Encrypt made of it.
type Record struct {
	seed   []byte
	sealed *v2.EncryptResponse
}

// Seal has a random seed encrypted.
func Seal(ctx context.Context, kms v2.KeyManagementServiceClient) (Record, error) {
	ctx, cancel := context.WithTimeout(ctx, CallTimeout)
	defer cancel()
	seed := newSeed()
	sealed, err := kms.Encrypt(ctx, &v2.EncryptRequest{Plaintext: seed, Uid: uid})
	return Record{seed, sealed}, err
}

// SealAll makes n records, as many at once as callers.
func SealAll(ctx context.Context, kms v2.KeyManagementServiceClient, callers, n int) ([]Record, error) {
	var mu sync.Mutex
	var records []Record
	_, err := Load{Callers: callers, Calls: n}.Run(ctx, func(ctx context.Context) error {
		r, err := Seal(ctx, kms)
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		records = append(records, r)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("encrypting %d seeds: %w", n, err)
	}
	return records, nil
}

// Overhead is what the record adds to each object in etcd, in bytes: ciphertext,
// key_id, and the names and values of the annotations.
func (r Record) Overhead() int {
	n := len(r.sealed.KeyId) + len(r.sealed.Ciphertext)
	for name, value := range r.sealed.Annotations {
		n += len(name) + len(value)
	}
	return n
}

// KeyID is the record's key_id.
func (r Record) KeyID() string { return r.sealed.KeyId }

// errOtherBytes holds neither of the two.
var errOtherBytes = errors.New("decrypting: other bytes came back than were encrypted")

// Decrypt decrypts one record again and again, and demands its seed back.
func (r Record) Decrypt(kms v2.KeyManagementServiceClient) Call {
	req := &v2.DecryptRequest{Uid: uid, Ciphertext: r.sealed.Ciphertext, KeyId: r.sealed.KeyId, Annotations: r.sealed.Annotations}
	return func(ctx context.Context) error {
		opened, err := kms.Decrypt(ctx, req)
		if err != nil {
			return err
		}
		if !bytes.Equal(opened.Plaintext, r.seed) {
			return errOtherBytes
		}
		return nil
	}
}

// DecryptEach decrypts each record once, in their order: it may be called as
// often as there are records.
func DecryptEach(kms v2.KeyManagementServiceClient, records []Record) Call {
	var next atomic.Int64
	return func(ctx context.Context) error {
		return records[next.Add(1)-1].Decrypt(kms)(ctx)
	}
}

func newSeed() []byte {
	seed := make([]byte, seedSize)
	rand.Read(seed) // never fails (crypto/rand)
	return seed
}

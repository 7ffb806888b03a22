package lab

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"
	kmstypes "k8s.io/apiserver/pkg/storage/value/encrypt/envelope/kmsv2/v2"

	"github.com/kube-kek/kube-kek/e2e/internal/parts"
)

// Etcd is a real etcd of one member, and a client to look behind the apiserver.
type Etcd struct {
	lab    *Lab
	url    string
	client *clientv3.Client
}

func (l *Lab) startEtcd() *Etcd {
	l.Helper()
	client, peer := "http://"+address(l.reservePort()), "http://"+address(l.reservePort())
	p := l.run("etcd", parts.Etcd, nil,
		"--name=lab", "--data-dir="+filepath.Join(l.Dir, "etcd"),
		"--listen-client-urls="+client, "--advertise-client-urls="+client,
		"--listen-peer-urls="+peer, "--initial-advertise-peer-urls="+peer, "--initial-cluster=lab="+peer,
		"--socket-reuse-port=true", "--log-level=warn",
		// No test kills etcd, so nothing is lost by not waiting for the disk.
		"--unsafe-no-fsync=true")
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{client}, DialTimeout: 5 * time.Second, Logger: zap.NewNop()})
	if err != nil {
		l.Fatalf("%v", err)
	}
	l.Cleanup(func() { c.Close() })
	l.waitFor("etcd", p, 30*time.Second, func() error {
		ctx, cancel := context.WithTimeout(l.Context(), time.Second)
		defer cancel()
		_, err := c.Status(ctx, client)
		return err
	})
	return &Etcd{lab: l, url: client, client: c}
}

// A Record is a Secret as etcd holds it.
type Record struct {
	EtcdKey  string // /registry/secrets/NAMESPACE/NAME
	Raw      []byte // the whole value
	Provider string // the name of the provider in the EncryptionConfiguration
	*kmstypes.EncryptedObject
}

// Get returns what etcd holds under a key, nil if nothing.
func (e *Etcd) Get(key string) []byte {
	e.lab.Helper()
	resp, err := e.client.Get(e.lab.Context(), key)
	if err != nil {
		e.lab.Fatalf("reading etcd: %v", err)
	}
	if len(resp.Kvs) == 0 {
		return nil
	}
	return resp.Kvs[0].Value
}

// recordPrefix begins every value that a KMS v2 plugin's seed encrypted; the
// provider's name and a colon follow.
const recordPrefix = "k8s:enc:kms:v2:"

// Secrets returns every Secret that etcd holds, by its etcd key. A Secret that
// is not under KMS v2 ends the test.
func (e *Etcd) Secrets() map[string]Record {
	e.lab.Helper()
	const prefix = "/registry/secrets/"
	resp, err := e.client.Get(e.lab.Context(), prefix, clientv3.WithPrefix())
	if err != nil {
		e.lab.Fatalf("reading etcd: %v", err)
	}
	records := map[string]Record{}
	for _, kv := range resp.Kvs {
		r, err := parseRecord(string(kv.Key), kv.Value)
		if err != nil {
			e.lab.Fatalf("etcd holds a Secret that is not encrypted under KMS v2: %s: %v", kv.Key, err)
		}
		records[strings.TrimPrefix(string(kv.Key), prefix)] = r
	}
	return records
}

func parseRecord(key string, raw []byte) (Record, error) {
	rest, ok := bytes.CutPrefix(raw, []byte(recordPrefix))
	if !ok {
		return Record{}, fmt.Errorf("it starts with %q, not with %q", raw[:min(len(raw), 20)], recordPrefix)
	}
	provider, body, ok := bytes.Cut(rest, []byte(":"))
	if !ok {
		return Record{}, fmt.Errorf("no provider name behind the prefix")
	}
	object := &kmstypes.EncryptedObject{}
	if err := proto.Unmarshal(body, object); err != nil {
		return Record{}, err
	}
	return Record{EtcdKey: key, Raw: raw, Provider: string(provider), EncryptedObject: object}, nil
}

// Overhead is how many bytes the plugin adds to a record: key ID, ciphertext of
// the seed, and annotations with their names.
func Overhead(r Record) int {
	n := len(r.KeyID) + len(r.EncryptedDEKSource)
	for name, value := range r.Annotations {
		n += len(name) + len(value)
	}
	return n
}

// Count is what distinguishes the records of a set.
type Count struct {
	Records   int
	Seeds     int // distinct encrypted DEK seeds: what kube-apiserver asks the plugin to decrypt
	LocalKEKs int // distinct annotations: what the plugin asks the KMS to unwrap
	KeyIDs    map[string]int
}

// Tally counts records, seeds, local KEKs and key IDs.
func Tally(records map[string]Record) Count {
	seeds, locals := map[string]bool{}, map[string]bool{}
	c := Count{Records: len(records), KeyIDs: map[string]int{}}
	for _, r := range records {
		seeds[string(r.EncryptedDEKSource)] = true
		locals[string(r.Annotations[annotation])] = true
		c.KeyIDs[r.KeyID]++
	}
	c.Seeds, c.LocalKEKs = len(seeds), len(locals)
	return c
}

// annotation is the one that holds the wrapped local KEK, spelt out here because
// it is part of what etcd holds: it cannot change.
const annotation = "local-kek.kube-kek.io"

package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	mathrand "math/rand/v2"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kmsv2 "k8s.io/kms/apis/v2"

	"github.com/kube-kek/kube-kek/e2e/internal/lab"
)

// The plugin keeps nothing on disk, so a crash at any moment may cost a request
// and never a Secret: what was acknowledged, to a client of the apiserver or to
// the apiserver by the plugin, is there and whole after every kill.
func TestNoAcknowledgedWriteIsLostTornOrUnreadableWhenThePluginIsKilledTwentyTimes(t *testing.T) {
	t.Parallel()
	const kills = 20
	l := lab.New(t)
	plugin := l.StartPlugin(lab.Config{KEK: l.StartAWS().KEK()})
	apiserver := l.StartAPIServer("apiserver", plugin)

	secrets, seeds := newLedger(), &sealed{}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var clients sync.WaitGroup
	for writer := range 2 {
		clients.Go(func() { secrets.write(ctx, apiserver, fmt.Sprintf("writer-%d", writer)) })
	}
	clients.Go(func() { secrets.read(ctx, t, apiserver) })
	clients.Go(func() { seeds.sealAndOpen(ctx, t, plugin) })

	for kill := range kills {
		// Each fifth kill hits an apiserver on its way up as well, whose first
		// Encrypt and whose Decrypts of all that etcd holds are then in flight.
		if kill%5 == 4 {
			apiserver.Kill()
			apiserver.Start()
		}
		time.Sleep(mathrand.N(2 * time.Second))
		plugin.Kill()
		plugin.Start()
		plugin.WaitServing()
	}
	apiserver.WaitReady()
	time.Sleep(time.Second)
	stop()
	clients.Wait()

	// Nobody has anything in memory now.
	plugin.Restart()
	apiserver.Restart()
	writes := secrets.check(t, apiserver)
	opened := seeds.check(t, plugin)
	t.Logf("%d kills: %d acknowledged writes of %d Secrets (%d refused), %d reads; %d acknowledged seeds (%d calls cut off); all whole; etcd holds %+v",
		kills, writes, len(secrets.acked), secrets.refused, secrets.reads, opened, seeds.cutOff, lab.Tally(l.Etcd.Secrets()))
	if writes < 10*kills || opened < 10*kills {
		t.Errorf("%d writes and %d seeds are too few to mean anything", writes, opened)
	}
}

// A ledger remembers, for each Secret, the last write that was acknowledged and
// the last that was tried: what is read must be one of these or lie between.
type ledger struct {
	mu             sync.Mutex
	acked, tried   map[string]int
	refused, reads int
}

func newLedger() *ledger { return &ledger{acked: map[string]int{}, tried: map[string]int{}} }

// write creates and updates the Secrets NAME-0 to NAME-9 in turn, and now and
// then one that stays as it is, under the seed of that moment.
func (d *ledger) write(ctx context.Context, s *lab.APIServer, name string) {
	for i := 0; ctx.Err() == nil; i++ {
		name, write := fmt.Sprintf("%s-%d", name, i%10), i/10+1
		if i%50 == 0 {
			name, write = fmt.Sprintf("%s-once-%d", name, i), 1
		}
		d.mu.Lock()
		d.tried[name] = write
		d.mu.Unlock()
		_, err := s.Secrets().Update(ctx, lab.Secret(name, write), metav1.UpdateOptions{})
		if apierrors.IsNotFound(err) {
			_, err = s.Secrets().Create(ctx, lab.Secret(name, write), metav1.CreateOptions{})
		}
		d.mu.Lock()
		if err == nil {
			d.acked[name] = write
		} else {
			d.refused++
		}
		d.mu.Unlock()
		pause(ctx, err)
	}
}

// read reads whatever was acknowledged. It may be refused while the apiserver is
// down; it may never see less than was acknowledged before it asked.
func (d *ledger) read(ctx context.Context, t *testing.T, s *lab.APIServer) {
	for ctx.Err() == nil {
		d.mu.Lock()
		name, acked := "", 0
		for name, acked = range d.acked {
			break
		}
		d.mu.Unlock()
		if name == "" {
			pause(ctx, nil)
			continue
		}
		secret, err := s.Secrets().Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			t.Errorf("%s is lost: write %d was acknowledged", name, acked)
		} else if err == nil {
			write, err := lab.Whole(secret)
			if err != nil || write < acked {
				t.Errorf("read of %s: write %d, %d was acknowledged before: %v", name, write, acked, err)
			}
			d.mu.Lock()
			d.reads++
			d.mu.Unlock()
		}
		pause(ctx, err)
	}
}

// check reads every Secret once and returns how many writes were acknowledged.
func (d *ledger) check(t *testing.T, s *lab.APIServer) (writes int) {
	for name, acked := range d.acked {
		writes += acked
		secret, err := s.Secrets().Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			t.Errorf("%s is unreadable: %v", name, err)
			continue
		}
		if write, err := lab.Whole(secret); err != nil || write < acked || write > d.tried[name] {
			t.Errorf("%s is of write %d, %d was acknowledged and %d tried: %v", name, write, acked, d.tried[name], err)
		}
	}
	return writes
}

// sealed remembers every Encrypt of the plugin that was acknowledged.
type sealed struct {
	plain   [][]byte
	records []*kmsv2.EncryptResponse
	cutOff  int
}

// sealAndOpen is a second apiserver in effect: it asks the plugin itself, all
// the time, and so has calls in flight at every kill.
func (s *sealed) sealAndOpen(ctx context.Context, t *testing.T, p *lab.Plugin) {
	for ctx.Err() == nil {
		seed := make([]byte, 32)
		rand.Read(seed)
		resp, err := p.KMS.Encrypt(ctx, &kmsv2.EncryptRequest{Plaintext: seed, Uid: "e2e"})
		if err == nil {
			s.plain, s.records = append(s.plain, seed), append(s.records, resp)
			i := mathrand.N(len(s.records))
			err = s.open(ctx, t, p, i)
		}
		if code := status.Code(err); err != nil && ctx.Err() == nil {
			s.cutOff++
			if code != codes.Unavailable && code != codes.DeadlineExceeded {
				t.Errorf("the plugin answers %v", err)
			}
		}
		pause(ctx, err)
	}
}

func (s *sealed) open(ctx context.Context, t *testing.T, p *lab.Plugin, i int) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	r := s.records[i]
	resp, err := p.KMS.Decrypt(ctx, &kmsv2.DecryptRequest{Uid: "e2e", KeyId: r.KeyId, Ciphertext: r.Ciphertext, Annotations: r.Annotations})
	if err == nil && !bytes.Equal(resp.Plaintext, s.plain[i]) {
		t.Errorf("the plugin opened seed %d to something else", i)
	}
	return err
}

// check opens every seed and returns how many there are.
func (s *sealed) check(t *testing.T, p *lab.Plugin) int {
	for i := range s.records {
		if err := s.open(t.Context(), t, p, i); err != nil {
			t.Fatalf("seed %d is unreadable: %v", i, err)
		}
	}
	return len(s.records)
}

// pause keeps the clients from taking the machine for themselves, and from
// spinning on errors.
func pause(ctx context.Context, err error) {
	d := 5 * time.Millisecond
	if err != nil {
		d = 50 * time.Millisecond
	}
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

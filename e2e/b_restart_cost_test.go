package e2e

import (
	"fmt"
	"sync"
	"testing"

	"github.com/kube-kek/kube-kek/e2e/internal/lab"
)

// Every start of an apiserver makes a new DEK seed, and a plugin that asks its
// KMS to decrypt each of them turns the next restart into a storm. Here seeds
// are under local KEKs, and only those cost a call.
func TestAColdStartOverAThousandSecretsCostsNoMoreKMSCallsThanThereAreLocalKEKs(t *testing.T) {
	t.Parallel()
	const (
		generations = 5  // starts of the plugin, each with a local KEK of its own
		apiservers  = 2  // side by side on one etcd, as in a control plane
		starts      = 5  // of each apiserver in each generation
		secrets     = 20 // written after each start
		seeds       = generations * apiservers * starts
	)
	l := lab.New(t)
	aws := l.StartAWS()
	plugin := l.NewPlugin(lab.Config{KEK: aws.KEK()})

	servers := make([]*lab.APIServer, apiservers)
	for i := range servers {
		servers[i] = l.NewAPIServer(fmt.Sprintf("apiserver-%d", i), plugin)
	}
	for generation := range generations {
		plugin.Start()
		plugin.WaitServing()
		var g sync.WaitGroup
		for i, s := range servers {
			g.Go(func() {
				for start := range starts {
					s.Start()
					s.WaitReady()
					s.Create(fmt.Sprintf("s-%d-%d-%d", generation, i, start), secrets)
					s.Kill()
				}
			})
		}
		g.Wait()
		if t.Failed() {
			t.FailNow()
		}
		plugin.Stop()
	}

	count := lab.Tally(l.Etcd.Secrets())
	t.Logf("etcd holds %d Secrets under %d seeds and %d local KEKs", count.Records, count.Seeds, count.LocalKEKs)
	if count.Records != seeds*secrets || count.Seeds != seeds || count.LocalKEKs != generations {
		t.Fatalf("etcd holds %+v, want %d records, %d seeds, %d local KEKs", count, seeds*secrets, seeds, generations)
	}

	// Both start with nothing in memory, and the plugin without what it knew.
	plugin.Forget()
	plugin.Start()
	plugin.WaitServing()
	before := aws.Calls()
	servers[0].Start()
	servers[0].WaitReady()
	servers[0].ReadAll(seeds * secrets)
	calls := aws.Calls() - before

	decrypts := plugin.Metrics().Sum("kube_kek_grpc_server_handled_total", "grpc_method", "Decrypt", "grpc_code", "OK")
	t.Logf("a restarted kube-apiserver read all of them with %.0f Decrypts of the plugin and %d calls of the KMS", decrypts, calls)
	if calls > count.LocalKEKs {
		t.Errorf("%d calls of the KMS, want at most one for each of %d local KEKs", calls, count.LocalKEKs)
	}
	if decrypts < seeds {
		t.Errorf("%.0f Decrypts, want at least one for each of %d seeds: the apiserver was not cold", decrypts, seeds)
	}
}

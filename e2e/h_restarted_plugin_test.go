package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/kube-kek/kube-kek/e2e/internal/lab"
)

// A running kube-apiserver keeps its seeds in memory, so it tells a plugin that
// was restarted beside it of none of them. The next outage must find them opened
// all the same, for kube-apiserver may have to restart in it.
func TestAPluginThatWasRestartedBeforeTheOutageIsReadyForIt(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	aws := l.StartAWS()
	plugin := l.StartPlugin(lab.Config{KEK: aws.KEK(), Renew: "2s"})
	apiserver := l.StartAPIServer("apiserver", plugin)
	const each = 10
	secrets := 0
	for i := range 3 {
		apiserver.Create(fmt.Sprintf("start-%d", i), each)
		secrets += each
		apiserver.Restart() // a seed of its own for each start of the plugin
		plugin.Restart()
	}
	l.Eventually("the plugin to hold again what it held before", 30*time.Second, func() error {
		m := plugin.Metrics()
		known, held := m.Sum("kube_kek_local_keks_known"), m.Sum("kube_kek_local_keks")
		if known < 4 || held != known {
			return fmt.Errorf("%v local KEKs held, %v known", held, known)
		}
		return nil
	})
	if asked := plugin.Metrics().Sum("kube_kek_grpc_server_handled_total", "grpc_method", "Decrypt"); asked != 0 {
		t.Fatalf("kube-apiserver asked for %v Decrypts; this test is about one that asks for none", asked)
	}

	aws.Reset()
	ready := apiserver.Restart()
	apiserver.ReadAll(secrets)
	apiserver.Create("in-the-outage", each)
	apiserver.ReadAll(secrets + each)
	t.Logf("plugin restarted, KMS gone, kube-apiserver restarted: ready in %s, %d Secrets read, %d written", ready.Round(time.Second/10), secrets, each)
}

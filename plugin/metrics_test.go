package plugin_test

import (
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	v2 "k8s.io/kms/apis/v2"

	"github.com/kube-kek/kube-kek/kek"
	"github.com/kube-kek/kube-kek/kek/kektest"
	"github.com/kube-kek/kube-kek/kek/localkek"
	"github.com/kube-kek/kube-kek/plugin"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestMetricsAreThoseOfTheGoldenFile(t *testing.T) {
	reg := prometheus.NewRegistry()
	m := plugin.NewMetrics(reg, plugin.Build{Version: "v1.2.3", Revision: "abcdef"})
	m.Watch(outage())
	plugin.NewServer(plugin.NewService(plugin.Config{Ring: &fakeRing{}}), m, slog.New(slog.DiscardHandler))
	home := kek.Metrics(kektest.New(kektest.Config{}), "fake", m.Calls)
	if _, err := home.Current(t.Context()); err != nil {
		t.Fatal(err)
	}

	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for _, f := range families {
		names := map[string]bool{}
		for _, metric := range f.GetMetric() {
			for _, l := range metric.GetLabel() {
				names[l.GetName()] = true
			}
		}
		fmt.Fprintf(&out, "# HELP %s %s\n# TYPE %s %s\n", f.GetName(), f.GetHelp(), f.GetName(), strings.ToLower(f.GetType().String()))
		fmt.Fprintf(&out, "%s{%s}\n", f.GetName(), strings.Join(slices.Sorted(maps.Keys(names)), ","))
	}
	if diff := diffGolden(t, "testdata/metrics.golden", out.String()); diff != "" {
		t.Errorf("metrics changed; dashboards and alerts may depend on them. If it is meant: go test ./plugin -update\n(-want +got):\n%s", diff)
	}
}

// diffGolden tells how got differs from a golden file, which -update writes.
func diffGolden(t *testing.T, path, got string) string {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return cmp.Diff(string(want), got)
}

// values returns the gauges and counters of reg as text, those without a client's
// part in them.
func values(t *testing.T, reg prometheus.Gatherer) map[string]float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, metric := range f.GetMetric() {
			var labels []string
			for _, l := range metric.GetLabel() {
				labels = append(labels, l.GetName()+"="+l.GetValue())
			}
			name := fmt.Sprintf("%s{%s}", strings.TrimPrefix(f.GetName(), "kube_kek_"), strings.Join(labels, ","))
			switch {
			case metric.Gauge != nil:
				got[name] = metric.GetGauge().GetValue()
			case metric.Counter != nil:
				got[name] = metric.GetCounter().GetValue()
			}
		}
	}
	return got
}

func TestTheRingsMetricsSayWhatItsSnapshotSays(t *testing.T) {
	reg := prometheus.NewRegistry()
	m := plugin.NewMetrics(reg, plugin.Build{Version: "v1", Revision: "r"})
	m.Watch(outage())
	m.PeerRefused()
	got := values(t, reg)
	maps.DeleteFunc(got, func(name string, _ float64) bool { return strings.HasPrefix(name, "build_info") })
	want := map[string]float64{
		"ready{}":                    1,
		"local_keks{}":               5,
		"local_keks_known{}":         7,
		"key_rotations_seen_total{}": 1,
		"refused_peers_total{}":      1,
		"key_info{key=key,key_id=fake:key@2,provider=fake,version=2}":  1,
		"key_version_first_seen_timestamp_seconds{key_id=fake:key@1}":  1767319445,
		"key_version_first_seen_timestamp_seconds{key_id=fake:key@2}":  1767323045,
		"lease_remaining_seconds{key_id=fake:key@1}":                   36000,
		"lease_remaining_seconds{key_id=fake:key@2}":                   39600,
		"key_created_timestamp_seconds{key=key,provider=fake}":         1735787045,
		"key_version_created_timestamp_seconds{key=key,provider=fake}": 1767323045,
		"key_deletion_timestamp_seconds{key=key,provider=fake}":        1767927845,
		"key_state{key=key,provider=fake,state=unknown}":               0,
		"key_state{key=key,provider=fake,state=enabled}":               0,
		"key_state{key=key,provider=fake,state=disabled}":              0,
		"key_state{key=key,provider=fake,state=pending_deletion}":      1,
		"key_state{key=old,provider=other,state=unknown}":              0,
		"key_state{key=old,provider=other,state=enabled}":              1,
		"key_state{key=old,provider=other,state=disabled}":             0,
		"key_state{key=old,provider=other,state=pending_deletion}":     0,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("metrics (-want +got):\n%s", diff)
	}
}

func TestARingThatHasHeardNothingHasNoTimesAndIsNotReady(t *testing.T) {
	c := localkek.DefaultConfig()
	c.Cluster = "test"
	c.Current = localkek.Home{Scheme: "fake", ID: "fake", Provider: kektest.New(kektest.Config{})}
	ring, err := localkek.New(c)
	if err != nil {
		t.Fatal(err)
	}
	reg := prometheus.NewRegistry()
	plugin.NewMetrics(reg, plugin.Build{}).Watch(ring)
	for name, value := range values(t, reg) {
		if value != 0 && !strings.HasPrefix(name, "build_info") || strings.Contains(name, "timestamp") {
			t.Errorf("%s is %v", name, value)
		}
	}
}

func TestNoLabelHoldsWhatAClientSays(t *testing.T) {
	reg := prometheus.NewRegistry()
	m := plugin.NewMetrics(reg, plugin.Build{})
	ring := newRing(t, kektest.New(kektest.Config{}))
	m.Watch(ring)
	client, _ := start(t, plugin.NewServer(plugin.NewService(plugin.Config{Ring: ring}), m, slog.New(slog.DiscardHandler)))
	before := len(values(t, reg))
	for i := range 100 {
		client.Encrypt(t.Context(), &v2.EncryptRequest{Uid: fmt.Sprint("uid-", i)})
		client.Decrypt(t.Context(), &v2.DecryptRequest{Uid: fmt.Sprint("uid-", i), KeyId: fmt.Sprint("fake:fake@", i), Ciphertext: []byte("c")})
	}
	if after := len(values(t, reg)); after != before {
		t.Errorf("%d time series became %d", before, after)
	}
}

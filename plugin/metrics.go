package plugin

import (
	"runtime"
	"time"

	grpcprom "github.com/grpc-ecosystem/go-grpc-middleware/providers/prometheus"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/kube-kek/kube-kek/kek"
	"github.com/kube-kek/kube-kek/kek/localkek"
)

// Build says which build this is.
type Build struct{ Version, Revision string }

// Metrics are all collectors of the daemon but Go's own. No label has a value
// that a client chooses, or an error's text: each is one of a few words, or names
// a key or key version that the configuration leads to.
type Metrics struct {
	// Calls is for [kek.Metrics], the decorator of the providers.
	Calls *kek.CallMetrics

	reg     prometheus.Registerer
	grpc    *grpcprom.ServerMetrics
	refused prometheus.Counter
}

// NewMetrics makes the collectors and registers them. It is called once for a
// Registerer.
func NewMetrics(reg prometheus.Registerer, b Build) *Metrics {
	m := &Metrics{
		Calls: kek.NewCallMetrics(reg),
		reg:   reg,
		grpc: grpcprom.NewServerMetrics(
			grpcprom.WithServerCounterOptions(grpcprom.WithNamespace("kube_kek")),
			grpcprom.WithServerHandlingTimeHistogram(
				grpcprom.WithHistogramNamespace("kube_kek"),
				grpcprom.WithHistogramBuckets([]float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5}),
			),
		),
		refused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "kube_kek_refused_peers_total",
			Help: "Connections to the socket that were closed because their UID is not allowed.",
		}),
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name:        "kube_kek_build_info",
		Help:        "1, labelled with the version, source revision and Go version of this build.",
		ConstLabels: prometheus.Labels{"version": b.Version, "revision": b.Revision, "go_version": runtime.Version()},
	})
	build.Set(1)
	reg.MustRegister(m.grpc, m.refused, build)
	return m
}

// PeerRefused counts a connection that [Listen] refused.
func (m *Metrics) PeerRefused() { m.refused.Inc() }

// Watch registers the metrics of a ring. It is called once.
func (m *Metrics) Watch(ring Snapshotter) { m.reg.MustRegister(newRingCollector(ring)) }

// ringCollector turns a snapshot of the ring into metrics at each scrape. Times
// that are not known have no metric rather than the value 0, which an alert on
// age would take for 1970.
type ringCollector struct {
	ring Snapshotter

	ready, localKEKs, known, rotations, info, firstSeen, lease *prometheus.Desc
	keyCreated, versionCreated, deletion, state                *prometheus.Desc
}

func newRingCollector(ring Snapshotter) *ringCollector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("kube_kek_"+name, help, labels, nil)
	}
	return &ringCollector{
		ring:           ring,
		ready:          desc("ready", "1 if there is a usable current local KEK, so that Status is well, else 0."),
		localKEKs:      desc("local_keks", "Local KEKs held in memory."),
		known:          desc("local_keks_known", "Local KEKs held in memory, or to be opened again in the background. What is known and not held cannot be opened in an outage."),
		rotations:      desc("key_rotations_seen_total", "Times since start that the current key version moved."),
		info:           desc("key_info", "1 for the key version that writes use now; key_id is what kube-apiserver stores.", "key_id", "provider", "key", "version"),
		firstSeen:      desc("key_version_first_seen_timestamp_seconds", "When this process first used the key version, in seconds since 1970.", "key_id"),
		lease:          desc("lease_remaining_seconds", "Time that the local KEKs of the key version may still be used without word from the KEK's home, in seconds.", "key_id"),
		keyCreated:     desc("key_created_timestamp_seconds", "When the key was created, as its home tells, in seconds since 1970.", "provider", "key"),
		versionCreated: desc("key_version_created_timestamp_seconds", "When the key's current version was created, as its home tells, in seconds since 1970.", "provider", "key"),
		deletion:       desc("key_deletion_timestamp_seconds", "When a key that is pending deletion will be gone, in seconds since 1970. Absent otherwise.", "provider", "key"),
		state:          desc("key_state", "1 for the state that the key's home last told, 0 for the other states.", "provider", "key", "state"),
	}
}

// Describe implements prometheus.Collector.
func (c *ringCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		c.ready, c.localKEKs, c.known, c.rotations, c.info, c.firstSeen, c.lease,
		c.keyCreated, c.versionCreated, c.deletion, c.state,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector. It asks no home.
func (c *ringCollector) Collect(ch chan<- prometheus.Metric) {
	s := c.ring.Snapshot()
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	gauge(c.ready, oneIf(s.Err == nil))
	gauge(c.localKEKs, float64(s.LocalKEKs))
	gauge(c.known, float64(s.Known))
	ch <- prometheus.MustNewConstMetric(c.rotations, prometheus.CounterValue, float64(s.Rotations))

	for _, v := range s.Versions {
		if v.Current {
			gauge(c.info, 1, v.KeyID, v.Scheme, v.Key.ID, v.Key.Version)
		}
		c.timestamp(ch, c.firstSeen, v.FirstSeen, v.KeyID)
		if !s.Strict {
			gauge(c.lease, max(v.LeaseLeft, 0).Seconds(), v.KeyID)
		}
	}

	// An alias and an ARN in the configuration may lead to one key, and the
	// same labels twice would fail the whole scrape.
	seen := map[[2]string]bool{}
	for _, h := range s.Homes {
		key := [2]string{h.Scheme, h.Facts.Key.ID}
		if key[1] == "" || seen[key] {
			continue
		}
		seen[key] = true
		c.timestamp(ch, c.keyCreated, h.Facts.Created, key[:]...)
		c.timestamp(ch, c.versionCreated, h.Facts.VersionCreated, key[:]...)
		c.timestamp(ch, c.deletion, h.Facts.DeletionDate, key[:]...)
		for _, state := range []kek.State{kek.StateUnknown, kek.StateEnabled, kek.StateDisabled, kek.StatePendingDeletion} {
			gauge(c.state, oneIf(h.Facts.State == state), key[0], key[1], stateName(state))
		}
	}
}

func (c *ringCollector) timestamp(ch chan<- prometheus.Metric, d *prometheus.Desc, t time.Time, labels ...string) {
	if !t.IsZero() {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(t.UnixMilli())/1000, labels...)
	}
}

func stateName(s kek.State) string {
	if s == kek.StateUnknown {
		return "unknown"
	}
	return string(s)
}

func oneIf(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

var _ Snapshotter = (*localkek.Ring)(nil)

package kek

import (
	"context"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// CallMetrics are the counters that [Metrics] fills. One set serves all
// providers of a process.
type CallMetrics struct {
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
}

// NewCallMetrics makes the counters and registers them.
func NewCallMetrics(reg prometheus.Registerer) *CallMetrics {
	m := &CallMetrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kube_kek_kms_requests_total",
			Help: "Calls to a KEK's home by provider (the URI scheme), operation, result (ok, or the kind of error) and purpose (request: an Encrypt or Decrypt waited for it; probe: background renewal).",
		}, []string{"provider", "operation", "result", "purpose"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "kube_kek_kms_request_duration_seconds",
			Help:    "Time of one call to a KEK's home, in seconds, by provider and operation.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5},
		}, []string{"provider", "operation"}),
	}
	reg.MustRegister(m.requests, m.duration)
	return m
}

// Metrics returns p with each call counted and timed under the provider's name,
// its URI scheme. It belongs inside [Retry], so that every attempt counts.
func Metrics(p Provider, name string, m *CallMetrics) Provider {
	return &metricsProvider{decorator{p}, name, m}
}

type metricsProvider struct {
	decorator
	name string
	m    *CallMetrics
}

func (p *metricsProvider) Current(ctx context.Context) (KeyRef, error) {
	start := time.Now()
	ref, err := p.Provider.Current(ctx)
	p.observe(ctx, OpCurrent, start, err)
	return ref, err
}

func (p *metricsProvider) Wrap(ctx context.Context, plaintext []byte) (Wrapped, error) {
	start := time.Now()
	w, err := p.Provider.Wrap(ctx, plaintext)
	p.observe(ctx, OpWrap, start, err)
	return w, err
}

func (p *metricsProvider) Unwrap(ctx context.Context, w Wrapped) ([]byte, error) {
	start := time.Now()
	b, err := p.Provider.Unwrap(ctx, w)
	p.observe(ctx, OpUnwrap, start, err)
	return b, err
}

func (p *metricsProvider) observe(ctx context.Context, op Op, start time.Time, err error) {
	result := "ok"
	if err != nil {
		result = strings.ReplaceAll(KindOf(err).String(), " ", "_")
	}
	p.m.requests.WithLabelValues(p.name, string(op), result, string(PurposeOf(ctx))).Inc()
	p.m.duration.WithLabelValues(p.name, string(op)).Observe(time.Since(start).Seconds())
}

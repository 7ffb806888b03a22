package kek_test

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/kube-kek/kube-kek/kek"
	"github.com/kube-kek/kube-kek/kek/kektest"
)

// gather returns every series as name{label="value",…}, a histogram by its count
// and its sum.
func gather(t *testing.T, reg prometheus.Gatherer) map[string]float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
			}
			series := "{" + strings.Join(labels, ",") + "}"
			if h := m.GetHistogram(); h != nil {
				got[family.GetName()+"_count"+series] = float64(h.GetSampleCount())
				got[family.GetName()+"_sum"+series] = h.GetSampleSum()
			} else {
				got[family.GetName()+series] = m.GetCounter().GetValue()
			}
		}
	}
	return got
}

func TestMetricsCountAndTimeEachCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg := prometheus.NewRegistry()
		m := kek.NewCallMetrics(reg)
		f := kektest.New(kektest.Config{})
		p := kek.Metrics(f, "fake", m)
		other := kek.Metrics(kektest.New(kektest.Config{}), "other", m)

		f.SetDelay(250 * time.Millisecond)
		w, err := p.Wrap(t.Context(), []byte("key"))
		if err != nil {
			t.Fatal(err)
		}
		probe := kek.WithPurpose(t.Context(), kek.Probe)
		for range 2 {
			if _, err := p.Unwrap(probe, w); err != nil {
				t.Fatal(err)
			}
		}
		f.Heal()
		f.Fail(kek.KeyDisabled)
		if _, err := p.Current(probe); err == nil {
			t.Fatal("a disabled key has a current version")
		}
		if _, err := other.Current(t.Context()); err != nil {
			t.Fatal(err)
		}

		want := map[string]float64{
			`kube_kek_kms_requests_total{operation="wrap",provider="fake",purpose="request",result="ok"}`:            1,
			`kube_kek_kms_requests_total{operation="unwrap",provider="fake",purpose="probe",result="ok"}`:            2,
			`kube_kek_kms_requests_total{operation="current",provider="fake",purpose="probe",result="key_disabled"}`: 1,
			`kube_kek_kms_requests_total{operation="current",provider="other",purpose="request",result="ok"}`:        1,
			`kube_kek_kms_request_duration_seconds_count{operation="wrap",provider="fake"}`:                          1,
			`kube_kek_kms_request_duration_seconds_sum{operation="wrap",provider="fake"}`:                            0.25,
			`kube_kek_kms_request_duration_seconds_count{operation="unwrap",provider="fake"}`:                        2,
			`kube_kek_kms_request_duration_seconds_sum{operation="unwrap",provider="fake"}`:                          0.5,
			`kube_kek_kms_request_duration_seconds_count{operation="current",provider="fake"}`:                       1,
			`kube_kek_kms_request_duration_seconds_sum{operation="current",provider="fake"}`:                         0,
			`kube_kek_kms_request_duration_seconds_count{operation="current",provider="other"}`:                      1,
			`kube_kek_kms_request_duration_seconds_sum{operation="current",provider="other"}`:                        0,
		}
		if diff := cmp.Diff(want, gather(t, reg)); diff != "" {
			t.Errorf("metrics (-want +got):\n%s", diff)
		}
	})
}

func TestTheResultIsTheKindInOneWord(t *testing.T) {
	for kind, want := range map[kek.Kind]string{
		kek.Unknown: "unknown", kek.Unavailable: "unavailable", kek.Throttled: "throttled",
		kek.Unauthenticated: "unauthenticated", kek.Denied: "denied", kek.KeyNotFound: "key_not_found",
		kek.KeyDisabled: "key_disabled", kek.Corrupt: "corrupt", kek.Invalid: "invalid",
	} {
		reg := prometheus.NewRegistry()
		f := kektest.New(kektest.Config{})
		f.Fail(kind)
		for op, call := range operations(t, kektest.New(kektest.Config{}), kek.Metrics(f, "fake", kek.NewCallMetrics(reg))) {
			if err := call(t.Context()); kek.KindOf(err) != kind {
				t.Errorf("%s: %v, want %v", op, err, kind)
			}
			series := fmt.Sprintf(`kube_kek_kms_requests_total{operation=%q,provider="fake",purpose="request",result=%q}`, op, want)
			if got := gather(t, reg)[series]; got != 1 {
				t.Errorf("%s is %v, want 1", series, got)
			}
		}
	}
}

func TestMetricsBelowRetryCountEveryAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg := prometheus.NewRegistry()
		f := kektest.New(kektest.Config{})
		f.FailTimes(2, kek.Throttled)
		if _, err := kek.Retry(kek.Metrics(f, "fake", kek.NewCallMetrics(reg))).Current(t.Context()); err != nil {
			t.Fatal(err)
		}
		got := gather(t, reg)
		for result, want := range map[string]float64{"throttled": 2, "ok": 1} {
			series := fmt.Sprintf(`kube_kek_kms_requests_total{operation="current",provider="fake",purpose="request",result=%q}`, result)
			if got[series] != want {
				t.Errorf("%s is %v, want %v", series, got[series], want)
			}
		}
	})
}

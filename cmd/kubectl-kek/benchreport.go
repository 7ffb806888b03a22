package main

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/kube-kek/kube-kek/plugin/bench"
)

// percentiles are the columns of the table.
func percentiles() []struct {
	name string
	p    float64
} {
	return []struct {
		name string
		p    float64
	}{{"p50", 50}, {"p90", 90}, {"p99", 99}, {"p99.9", 99.9}, {"max", 100}}
}

// writeBench draws the histograms, and below them, next to the prompt, the table.
func writeBench(w io.Writer, r bench.Report) error {
	width, _ := widthOf(w)
	fmt.Fprintf(w, "%s against a bare gRPC service\nkey_id  %q\n\n", r.Endpoint, r.KeyID)
	last := r.Options.Concurrency[len(r.Options.Concurrency)-1]
	for _, res := range r.Results {
		if res.Callers != last {
			continue
		}
		fmt.Fprintf(w, "%s, %d at once\n", res.Operation, res.Callers)
		if err := bench.Draw(w, width, bench.Series{Name: "plugin", Sample: res.Plugin}, bench.Series{Name: "bare", Sample: res.Baseline}); err != nil {
			return err
		}
		fmt.Fprintln(w)
	}

	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprint(t, "OPERATION\tAT ONCE")
	for _, p := range percentiles() {
		fmt.Fprintf(t, "\t%s", p.name)
	}
	fmt.Fprintln(t, "\tCALLS/S\tP50 VS BARE\tCALLS/S VS BARE")
	for _, res := range r.Results {
		fmt.Fprintf(t, "%s\t%d", res.Operation, res.Callers)
		for _, p := range percentiles() {
			fmt.Fprintf(t, "\t%s", bench.Short(res.Plugin.Percentile(p.p)))
		}
		fmt.Fprintf(t, "\t%.0f\t%.2f×\t%.2f×\n", res.Plugin.Throughput(), res.P50, res.Throughput)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w)
	if s := r.Storm; s != nil {
		fmt.Fprintf(w, "restart storm  %d seeds, %d at once: the first after %s, all after %s (bare: %s, %s); %d calls failed and were made again\n",
			s.Seeds, s.Callers, bench.Short(s.Plugin.First), bench.Short(s.Plugin.All), bench.Short(s.Baseline.First), bench.Short(s.Baseline.All), s.Plugin.Failed)
	} else {
		fmt.Fprintln(w, "restart storm  not measured, and cold Decrypts are of a plugin that has just encrypted: give --restart-cmd")
	}
	_, err := fmt.Fprintf(w, "per object     %d bytes in etcd from the plugin (ciphertext, key_id, annotations)\n", r.Overhead)
	return err
}

// The JSON of bench. Times are in seconds; its fields are only ever added to.
type benchDocument struct {
	Endpoint      string         `json:"endpoint"`
	KeyID         string         `json:"keyID"`
	Started       time.Time      `json:"started"`
	OverheadBytes int            `json:"overheadBytes"` // in etcd per object
	Restarted     bool           `json:"restarted"`     // before cold Decrypts
	Results       []benchResult  `json:"results"`
	Storm         *stormDocument `json:"storm"` // null without --restart-cmd
}

type benchResult struct {
	Operation string      `json:"operation"`
	Callers   int         `json:"callers"`
	Plugin    benchSample `json:"plugin"`
	Bare      benchSample `json:"bare"`
	VsBare    benchVersus `json:"vsBare"` // plugin / bare, median over the rounds
}

type benchVersus struct {
	P50        float64 `json:"p50"`
	Throughput float64 `json:"callsPerSecond"`
}

type benchSample struct {
	Calls      int                `json:"calls"`
	Throughput float64            `json:"callsPerSecond"`
	Latency    map[string]float64 `json:"latency"` // by percentile
	Histogram  []benchBucket      `json:"histogram"`
}

type benchBucket struct {
	UpTo  float64 `json:"upTo"`
	Calls int     `json:"calls"`
}

type stormDocument struct {
	Seeds   int         `json:"seeds"`
	Callers int         `json:"callers"`
	Plugin  stormSample `json:"plugin"`
	Bare    stormSample `json:"bare"`
}

type stormSample struct {
	First  float64 `json:"first"`  // from the end of the restart to the first seed
	All    float64 `json:"all"`    // to the last one
	Failed int     `json:"failed"` // calls that failed and were made again
	benchSample
}

func benchJSON(r bench.Report) benchDocument {
	d := benchDocument{Endpoint: r.Endpoint, KeyID: r.KeyID, Started: r.Started, OverheadBytes: r.Overhead, Restarted: r.Options.Restart != nil}
	for _, res := range r.Results {
		d.Results = append(d.Results, benchResult{
			Operation: res.Operation, Callers: res.Callers, Plugin: sampleJSON(res.Plugin), Bare: sampleJSON(res.Baseline),
			VsBare: benchVersus{res.P50, res.Throughput},
		})
	}
	if s := r.Storm; s != nil {
		d.Storm = &stormDocument{s.Seeds, s.Callers, stormJSON(s.Plugin), stormJSON(s.Baseline)}
	}
	return d
}

func stormJSON(s bench.StormResult) stormSample {
	return stormSample{s.First.Seconds(), s.All.Seconds(), s.Failed, sampleJSON(s.Sample)}
}

func sampleJSON(s bench.Sample) benchSample {
	out := benchSample{Calls: len(s.Took), Throughput: s.Throughput(), Latency: map[string]float64{}}
	for _, p := range percentiles() {
		out.Latency[p.name] = s.Percentile(p.p).Seconds()
	}
	for _, b := range s.Buckets() {
		out.Histogram = append(out.Histogram, benchBucket{b.UpTo.Seconds(), b.Calls})
	}
	return out
}

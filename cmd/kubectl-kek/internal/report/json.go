package report

import (
	"io"
	"time"

	"github.com/kube-kek/kube-kek/plugin/conformance"
)

// The JSON report. Its fields are only ever added to.
type jsonReport struct {
	Endpoint string       `json:"endpoint"`
	KeyID    string       `json:"keyID"` // that Status answered at the start
	Started  time.Time    `json:"started"`
	Seconds  float64      `json:"seconds"`
	Seed     uint64       `json:"seed,string"` // a number of 64 bits is no JavaScript number
	Passed   int          `json:"passed"`
	Failed   int          `json:"failed"`
	Skipped  int          `json:"skipped"`
	Results  []jsonResult `json:"results"`
}

type jsonResult struct {
	Name    string              `json:"name"`
	Level   conformance.Level   `json:"level"`
	Verdict conformance.Verdict `json:"verdict"`
	Seen    string              `json:"seen"`
	About   string              `json:"about"`
	Source  string              `json:"source"`
	Seconds float64             `json:"seconds"`
}

// JSON writes the report for machines.
func JSON(w io.Writer, r conformance.Report) error {
	out := jsonReport{
		Endpoint: r.Endpoint, KeyID: r.KeyID, Started: r.Started, Seconds: r.Duration.Seconds(), Seed: r.Seed,
		Passed: r.Count(conformance.Pass), Failed: r.Count(conformance.Fail), Skipped: r.Count(conformance.Skip),
		Results: []jsonResult{},
	}
	for _, res := range r.Results {
		out.Results = append(out.Results, jsonResult{res.Name, res.Level, res.Verdict, res.Seen, res.About, res.Source, res.Duration.Seconds()})
	}
	return writeJSON(w, out)
}

package report_test

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/kube-kek/kube-kek/cmd/kubectl-kek/internal/report"
	"github.com/kube-kek/kube-kek/plugin/conformance"
)

var update = flag.Bool("update", false, "write the golden files anew")

// sample has every level and verdict, and a plugin that answers control
// sequences and markup.
func sample() conformance.Report {
	return conformance.Report{
		Endpoint: "unix:///run/kms.sock",
		Started:  time.Date(2026, 3, 1, 12, 30, 0, 0, time.UTC),
		Duration: 83400 * time.Millisecond,
		Seed:     18446744073709551615,
		KeyID:    "awskms:arn:aws:kms:eu-west-1:111122223333:key/1234@5",
		Results: []conformance.Result{
			{
				Name: "status-version", Level: conformance.Must, Source: "KEP-3299, Status", About: "Status answers version v2.",
				Verdict: conformance.Pass, Seen: "version v2 in 40 of 40 answers", Duration: 41 * time.Millisecond,
			},
			{
				Name: "annotation-flipped", Level: conformance.Must, Source: "KEP-3299, Decrypt & <annotations>",
				About:   "Decrypt refuses a record of which one bit of an annotation was flipped.",
				Verdict: conformance.Fail, Duration: 1240 * time.Millisecond,
				Seen: "bit 3 of byte 17 flipped: the plaintext came back\nand another line: \x1b[31m|@admin|</testcase> `#1`\x00\u202e\xff",
			},
			{
				Name: "rotation-seen", Level: conformance.Must, Source: "KEP-3299, Key rotation", About: "Status shows a new key_id after a rotation.",
				Verdict: conformance.Skip, Seen: "needs the hook rotate", Duration: 0,
			},
			{
				Name: "decrypt-fast", Level: conformance.Should, Source: "Kubernetes: using a KMS provider", About: "Decrypt takes less than 10 ms.",
				Verdict: conformance.Fail, Seen: "the median of 200 calls was 14ms", Duration: 3 * time.Second,
			},
			{
				Name: "key-id-short", Level: conformance.Advice, Source: "every Secret carries it", About: "A key_id has 200 bytes at most.",
				Verdict: conformance.Fail, Seen: "401 bytes", Duration: 2 * time.Minute,
			},
			{
				Name: "socket-mode", Level: conformance.Advice, Source: "ours", About: "The socket is for its owner alone.",
				Verdict: conformance.Pass, Seen: "mode 0600", Duration: time.Microsecond,
			},
		},
	}
}

func TestReportsAreWrittenAsInTheGoldenFiles(t *testing.T) {
	for name, write := range map[string]func(io.Writer) error{
		"table.txt":    func(w io.Writer) error { return report.Table(w, sample(), report.Style{}) },
		"terminal.txt": func(w io.Writer) error { return report.Table(w, sample(), report.Style{Width: 72, Color: true}) },
		"report.json":  func(w io.Writer) error { return report.JSON(w, sample()) },
		"junit.xml":    func(w io.Writer) error { return report.JUnit(w, sample()) },
		"report.md":    func(w io.Writer) error { return report.Markdown(w, sample()) },
		"empty.md":     func(w io.Writer) error { return report.Markdown(w, conformance.Report{}) },
		"empty.json":   func(w io.Writer) error { return report.JSON(w, conformance.Report{}) },
		"list.txt": func(w io.Writer) error {
			return report.List(w, infos(), func(hook string) string { return hook + "-cmd" })
		},
		"list.json": func(w io.Writer) error { return report.ListJSON(w, infos()) },
	} {
		t.Run(name, func(t *testing.T) {
			var got bytes.Buffer
			if err := write(&got); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join("testdata", name)
			if *update {
				if err := os.WriteFile(path, got.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got.String()); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func infos() []conformance.Info {
	return []conformance.Info{
		{Name: "status-version", Level: conformance.Must, Source: "KEP-3299", About: "Status answers version v2."},
		{Name: "outage-recovers", Level: conformance.Should, Source: "ours", About: "It comes back.", Needs: []string{"kms-down", "kms-up"}},
	}
}

func TestNoReportPassesOnWhatAPluginCanDoToATerminal(t *testing.T) {
	for name, write := range map[string]func(io.Writer) error{
		"table":    func(w io.Writer) error { return report.Table(w, sample(), report.Style{}) },
		"junit":    func(w io.Writer) error { return report.JUnit(w, sample()) },
		"markdown": func(w io.Writer) error { return report.Markdown(w, sample()) },
		"json":     func(w io.Writer) error { return report.JSON(w, sample()) },
	} {
		var got bytes.Buffer
		if err := write(&got); err != nil {
			t.Fatal(err)
		}
		if s := got.String(); strings.ContainsAny(s, "\x00\x1b") || !utf8.ValidString(s) {
			t.Errorf("%s has control characters:\n%q", name, s)
		}
	}
}

func TestNoLineOfATerminalsTableIsTooLong(t *testing.T) {
	r := sample()
	r.Results[0].Seen = strings.Repeat("long ", 100)
	r.Results[1].Seen = strings.Repeat("long ", 100)
	const width = 80
	var got bytes.Buffer
	if err := report.Table(&got, r, report.Style{Width: width}); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(got.String()) {
		again := strings.HasPrefix(line, "The failed ones again") // to be copied, so in one piece
		if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > width && !again {
			t.Errorf("%d columns: %s", n, line)
		}
	}
}

func TestJUnitCountsWhatItHolds(t *testing.T) {
	var b bytes.Buffer
	if err := report.JUnit(&b, sample()); err != nil {
		t.Fatal(err)
	}
	var doc struct {
		XMLName  xml.Name `xml:"testsuites"`
		Tests    int      `xml:"tests,attr"`
		Failures int      `xml:"failures,attr"`
		Skipped  int      `xml:"skipped,attr"`
		Cases    []struct {
			Failure *struct{} `xml:"failure"`
			Skipped *struct{} `xml:"skipped"`
		} `xml:"testsuite>testcase"`
	}
	if err := xml.Unmarshal(b.Bytes(), &doc); err != nil {
		t.Fatal(err)
	}
	failures, skipped := 0, 0
	for _, c := range doc.Cases {
		if c.Failure != nil {
			failures++
		}
		if c.Skipped != nil {
			skipped++
		}
	}
	got := []int{doc.Tests, doc.Failures, doc.Skipped}
	if diff := cmp.Diff([]int{len(doc.Cases), failures, skipped}, got); diff != "" {
		t.Errorf("(-held +counted)\n%s", diff)
	}
	if failures != 2 {
		t.Errorf("%d failures; advice that is not followed is none, so 2 are wanted", failures)
	}
}

func TestJSONIsReadBackWhole(t *testing.T) {
	var b bytes.Buffer
	if err := report.JSON(&b, sample()); err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Passed, Failed, Skipped int
		Results                 []struct{ Name string }
	}
	if err := json.Unmarshal(b.Bytes(), &doc); err != nil {
		t.Fatal(err)
	}
	if doc.Passed != 2 || doc.Failed != 3 || doc.Skipped != 1 || len(doc.Results) != 6 {
		t.Errorf("got %+v", doc)
	}
}

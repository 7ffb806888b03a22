package report

import (
	"encoding/xml"
	"fmt"
	"io"
	"time"

	"github.com/kube-kek/kube-kek/plugin/conformance"
)

// The elements of JUnit's XML that CI systems read
// (https://github.com/testmoapp/junitxml).
type junitSuites struct {
	XMLName  xml.Name     `xml:"testsuites"`
	Name     string       `xml:"name,attr"`
	Tests    int          `xml:"tests,attr"`
	Failures int          `xml:"failures,attr"`
	Skipped  int          `xml:"skipped,attr"`
	Time     seconds      `xml:"time,attr"`
	Suites   []junitSuite `xml:"testsuite"`
}

type junitSuite struct {
	Name       string          `xml:"name,attr"`
	Tests      int             `xml:"tests,attr"`
	Failures   int             `xml:"failures,attr"`
	Errors     int             `xml:"errors,attr"`
	Skipped    int             `xml:"skipped,attr"`
	Time       seconds         `xml:"time,attr"`
	Timestamp  string          `xml:"timestamp,attr"` // ISO 8601, UTC
	Properties []junitProperty `xml:"properties>property"`
	Cases      []junitCase     `xml:"testcase"`
}

type junitProperty struct {
	Name  string `xml:"name,attr"`
	Value string `xml:"value,attr"`
}

type junitCase struct {
	Name      string        `xml:"name,attr"`
	ClassName string        `xml:"classname,attr"`
	Time      seconds       `xml:"time,attr"`
	Failure   *junitFailure `xml:"failure"`
	Skipped   *junitSkipped `xml:"skipped"`
	Out       string        `xml:"system-out,omitempty"`
}

type junitFailure struct {
	Message string `xml:"message,attr"`
	Type    string `xml:"type,attr"`
	Text    string `xml:",chardata"`
}

type junitSkipped struct {
	Message string `xml:"message,attr"`
}

type seconds float64

// MarshalText writes milliseconds behind a point and no exponent.
func (s seconds) MarshalText() ([]byte, error) { return fmt.Appendf(nil, "%.3f", float64(s)), nil }

// JUnit writes a test suite for each level. Advice that is not followed counts as
// skipped, because CI must not stop there, as the exit code does not.
func JUnit(w io.Writer, r conformance.Report) error {
	all := junitSuites{Name: "KMS v2 conformance", Time: seconds(r.Duration.Seconds())}
	for _, l := range levels() {
		results := of(r, l)
		if len(results) == 0 {
			continue
		}
		s := suiteOf(r, l, results)
		all.Tests += s.Tests
		all.Failures += s.Failures
		all.Skipped += s.Skipped
		all.Suites = append(all.Suites, s)
	}
	if _, err := io.WriteString(w, xml.Header); err != nil {
		return err
	}
	e := xml.NewEncoder(w)
	e.Indent("", "  ")
	if err := e.Encode(all); err != nil {
		return err
	}
	_, err := io.WriteString(w, "\n")
	return err
}

func suiteOf(r conformance.Report, l conformance.Level, results []conformance.Result) junitSuite {
	s := junitSuite{
		Name: string(l), Tests: len(results), Timestamp: r.Started.UTC().Format(time.DateOnly + "T" + time.TimeOnly),
		Properties: []junitProperty{{"endpoint", printable(r.Endpoint)}, {"key_id", printable(r.KeyID)}, {"seed", fmt.Sprint(r.Seed)}},
	}
	for _, res := range results {
		c := junitCase{Name: res.Name, ClassName: "kms-v2." + string(l), Time: seconds(res.Duration.Seconds())}
		switch seen := oneLine(res.Seen); {
		case res.Verdict == conformance.Skip:
			c.Skipped = &junitSkipped{seen}
		case res.Verdict == conformance.Fail && l == conformance.Advice:
			c.Skipped = &junitSkipped{"advice not followed: " + seen}
		case res.Verdict == conformance.Fail:
			c.Failure = &junitFailure{seen, string(l), printable(fmt.Sprintf("%s\ndemanded: %s\nby: %s", res.Seen, res.About, res.Source))}
		default:
			c.Out = printable(res.Seen)
		}
		if c.Failure != nil {
			s.Failures++
		}
		if c.Skipped != nil {
			s.Skipped++
		}
		s.Time += c.Time
		s.Cases = append(s.Cases, c)
	}
	return s
}

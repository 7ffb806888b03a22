// Package report writes what a conformance run found: for eyes, for machines, for
// CI and for an issue.
//
// What a plugin answered is in these reports, and a plugin under test is trusted
// with nothing: whatever it said comes out as text, never as a terminal's control
// sequence, a table's column or markup.
package report

import (
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/kube-kek/kube-kek/plugin/conformance"
)

// levels in the order of their weight.
func levels() []conformance.Level {
	return []conformance.Level{conformance.Must, conformance.Should, conformance.Advice}
}

// of returns the results of a level.
func of(r conformance.Report, l conformance.Level) []conformance.Result {
	var out []conformance.Result
	for _, res := range r.Results {
		if res.Level == l {
			out = append(out, res)
		}
	}
	return out
}

// tally counts verdicts in words.
func tally(results []conformance.Result) string {
	n := map[conformance.Verdict]int{}
	for _, res := range results {
		n[res.Verdict]++
	}
	return fmt.Sprintf("%d passed, %d failed, %d skipped", n[conformance.Pass], n[conformance.Fail], n[conformance.Skip])
}

// took rounds to what one wants to read.
func took(d time.Duration) string {
	switch {
	case d < time.Millisecond:
		return "<1ms"
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Minute:
		return d.Round(100 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}

// printable writes everything that does not print as Go writes it in a string,
// except the end of a line.
func printable(s string) string {
	var out strings.Builder
	for _, r := range s {
		if r == '\n' || unicode.IsPrint(r) {
			out.WriteRune(r)
			continue
		}
		quoted := strconv.QuoteRune(r)
		out.WriteString(quoted[1 : len(quoted)-1])
	}
	return out.String()
}

// oneLine is printable, with spaces for the ends of lines.
func oneLine(s string) string { return strings.Join(strings.Fields(printable(s)), " ") }

// again is the command that makes the failed checks once more; what else was set
// is not known here.
func again(r conformance.Report) string {
	var names []string
	for _, res := range r.Failures() {
		names = append(names, res.Name)
	}
	if len(names) == 0 {
		return ""
	}
	return fmt.Sprintf("kubectl kek conformance --endpoint '%s' --seed %d --run '^(%s)$'", oneLine(r.Endpoint), r.Seed, strings.Join(names, "|"))
}

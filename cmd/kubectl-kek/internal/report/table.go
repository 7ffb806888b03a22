package report

import (
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/kube-kek/kube-kek/plugin/conformance"
)

// Style is how a table is drawn.
type Style struct {
	Width int  // columns that a line may have; 0 is no limit
	Color bool // verdicts in colour, as on a terminal
}

// Table writes a line for each check and, of those that failed, the demand, its
// source and all that was seen.
func Table(w io.Writer, r conformance.Report, s Style) error {
	t := table{style: s}
	for _, res := range r.Results {
		t.name = max(t.name, len(res.Name))
	}
	t.line("", fmt.Sprintf("%-4s  %-6s  %-*s  %6s  ", "", "LEVEL", t.name, "CHECK", "TIME"), "SEEN")
	for _, res := range r.Results {
		t.result(res)
	}
	t.summary(r)
	_, err := io.WriteString(w, t.out.String())
	return err
}

type table struct {
	style Style
	name  int // columns of the longest name
	out   strings.Builder
}

func (t *table) result(res conformance.Result) {
	head := fmt.Sprintf("  %-6s  %-*s  %6s  ", res.Level, t.name, res.Name, took(res.Duration))
	seen := oneLine(res.Seen)
	if res.Verdict != conformance.Fail {
		t.line(t.verdict(res.Verdict), head, cut(seen, t.style.Width-len(head)-verdictWidth))
		return
	}
	t.line(t.verdict(res.Verdict), head, "")
	t.wrapped("seen      ", seen)
	t.wrapped("demanded  ", oneLine(res.About))
	t.wrapped("by        ", oneLine(res.Source))
}

const verdictWidth = 4

func (t *table) verdict(v conformance.Verdict) string {
	word, color := string(v), 32
	switch v {
	case conformance.Fail:
		word, color = "FAIL", 31
	case conformance.Skip:
		color = 33
	}
	if !t.style.Color {
		return word
	}
	return fmt.Sprintf("\x1b[%dm%s\x1b[0m", color, word)
}

func (t *table) line(parts ...string) {
	t.out.WriteString(strings.TrimRight(strings.Join(parts, ""), " "))
	t.out.WriteByte('\n')
}

// wrapped writes a labelled paragraph below a line of the table.
func (t *table) wrapped(label, text string) {
	const indent = "      "
	width := t.style.Width - len(indent) - len(label)
	for _, l := range wrap(text, width) {
		t.line(indent, label, l)
		label = strings.Repeat(" ", len(label))
	}
}

func (t *table) summary(r conformance.Report) {
	t.line()
	t.line(oneLine(r.Endpoint))
	if r.KeyID != "" {
		t.line("key_id  ", oneLine(r.KeyID))
	}
	for _, l := range levels() {
		if results := of(r, l); len(results) > 0 {
			t.line(fmt.Sprintf("%-6s  %s", l, tally(results)))
		}
	}
	t.line(fmt.Sprintf("%d checks in %s, seed %d", len(r.Results), took(r.Duration), r.Seed))
	if c := again(r); c != "" {
		t.line("The failed ones again, with the other flags as before:  ", c)
	}
}

// cut shortens to so many columns, unless they are so few that nothing would be
// left to read, as is the case where there is no limit.
func cut(s string, columns int) string {
	if columns < 20 || utf8.RuneCountInString(s) <= columns {
		return s
	}
	return string([]rune(s)[:columns-1]) + "…"
}

// wrap breaks a text between words into lines of so many columns at most.
func wrap(s string, columns int) []string {
	if columns < 20 {
		return []string{s}
	}
	var lines []string
	var line string
	for _, word := range strings.Fields(s) {
		if line != "" && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > columns {
			lines = append(lines, line)
			line = ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return append(lines, line)
}

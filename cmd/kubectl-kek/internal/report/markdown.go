package report

import (
	"fmt"
	"io"
	"strings"

	"github.com/kube-kek/kube-kek/plugin/conformance"
)

// Markdown writes tables for each level, fit for an issue: what failed, with the
// demand and its source, and folded below it the rest.
func Markdown(w io.Writer, r conformance.Report) error {
	var out strings.Builder
	fmt.Fprintf(&out, "## KMS v2 conformance: %s\n\n", tally(r.Results))
	fmt.Fprintf(&out, "`kubectl kek conformance` of %s, key_id %s, on %s, in %s, seed %d\n",
		code(r.Endpoint), code(r.KeyID), r.Started.UTC().Format("2006-01-02 15:04 MST"), took(r.Duration), r.Seed)
	for _, l := range levels() {
		results := of(r, l)
		if len(results) == 0 {
			continue
		}
		fmt.Fprintf(&out, "\n### %s: %s\n", l, tally(results))
		rows(&out, results, conformance.Fail)
		if n := len(r.Failures(l)); n < len(results) {
			out.WriteString("\n<details><summary>what passed or was skipped</summary>\n")
			rows(&out, results, conformance.Skip, conformance.Pass)
			out.WriteString("\n</details>\n")
		}
	}
	if c := again(r); c != "" {
		fmt.Fprintf(&out, "\nThe failed ones again, with the other flags as before:\n\n    %s\n", c)
	}
	_, err := io.WriteString(w, out.String())
	return err
}

// rows writes a table of the results with these verdicts, in this order.
func rows(out *strings.Builder, results []conformance.Result, verdicts ...conformance.Verdict) {
	head := "\n| verdict | check | seen |\n|---|---|---|\n"
	for _, v := range verdicts {
		for _, res := range results {
			if res.Verdict == v {
				fmt.Fprintf(out, "%s| %s | `%s` | %s |\n", head, verdict(v), res.Name, cell(res))
				head = ""
			}
		}
	}
}

func verdict(v conformance.Verdict) string {
	if v == conformance.Fail {
		return "**FAIL**"
	}
	return string(v)
}

func cell(res conformance.Result) string {
	seen := oneLine(res.Seen)
	if res.Verdict != conformance.Fail {
		return escape(cut(seen, 200))
	}
	return fmt.Sprintf("%s<br>*demanded:* %s<br>*by:* %s", escape(seen), escape(oneLine(res.About)), escape(oneLine(res.Source)))
}

// escape keeps text from being markup, HTML, a column, or a mention of somebody.
func escape(s string) string {
	var out strings.Builder
	for _, r := range s {
		switch {
		case strings.ContainsRune("\\`*_[]|~", r):
			out.WriteRune('\\')
			out.WriteRune(r)
		case strings.ContainsRune("<>&", r):
			fmt.Fprintf(&out, "&#%d;", r)
		case strings.ContainsRune("@#", r):
			fmt.Fprintf(&out, "%c<!-- -->", r) // GitHub finds mentions behind entities too
		default:
			out.WriteRune(r)
		}
	}
	return out.String()
}

// code sets text as code; a backtick, which would end that, becomes a quote.
func code(s string) string {
	if s == "" {
		return "(none)"
	}
	return "`" + strings.ReplaceAll(oneLine(s), "`", "'") + "`"
}

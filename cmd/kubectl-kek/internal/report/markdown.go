package report

import (
	"fmt"
	"io"
	"strings"

	"github.com/kube-kek/kube-kek/plugin/conformance"
)

// Markdown writes a table for each level, fit for an issue: what failed comes
// first, with the demand and its source.
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
		fmt.Fprintf(&out, "\n### %s: %s\n\n| verdict | check | seen |\n|---|---|---|\n", l, tally(results))
		for _, v := range []conformance.Verdict{conformance.Fail, conformance.Skip, conformance.Pass} {
			for _, res := range results {
				if res.Verdict == v {
					fmt.Fprintf(&out, "| %s | `%s` | %s |\n", verdict(v), res.Name, cell(res))
				}
			}
		}
	}
	if c := again(r); c != "" {
		fmt.Fprintf(&out, "\nThe failed ones again, with the other flags as before:\n\n    %s\n", c)
	}
	_, err := io.WriteString(w, out.String())
	return err
}

func verdict(v conformance.Verdict) string {
	if v == conformance.Fail {
		return "**FAIL**"
	}
	return string(v)
}

func cell(res conformance.Result) string {
	seen := escape(oneLine(res.Seen))
	if res.Verdict != conformance.Fail {
		return seen
	}
	return fmt.Sprintf("%s<br>*demanded:* %s<br>*by:* %s", seen, escape(oneLine(res.About)), escape(oneLine(res.Source)))
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

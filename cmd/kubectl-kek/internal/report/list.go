package report

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/kube-kek/kube-kek/plugin/conformance"
)

// List writes what the checks demand. flagOf names the flag that gives a hook.
func List(w io.Writer, checks []conformance.Info, flagOf func(hook string) string) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "CHECK\tLEVEL\tNEEDS\tDEMAND\tSOURCE")
	for _, i := range checks {
		var needs []string
		for _, hook := range i.Needs {
			needs = append(needs, "--"+flagOf(hook))
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", i.Name, i.Level, strings.Join(needs, " "), i.About, i.Source)
	}
	return t.Flush()
}

type jsonInfo struct {
	Name   string            `json:"name"`
	Level  conformance.Level `json:"level"`
	About  string            `json:"about"`
	Source string            `json:"source"`
	Needs  []string          `json:"needs"` // hooks; the flag of "rotate" is --rotate-cmd
}

// ListJSON writes the same for machines.
func ListJSON(w io.Writer, checks []conformance.Info) error {
	out := []jsonInfo{}
	for _, i := range checks {
		out = append(out, jsonInfo{i.Name, i.Level, i.About, i.Source, append([]string{}, i.Needs...)})
	}
	return writeJSON(w, out)
}

func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

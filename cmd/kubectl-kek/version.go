package main

import (
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// build is what the Go toolchain wrote into this binary.
type build struct {
	Version  string `json:"version"`  // the module's, from the source's tag
	Revision string `json:"revision"` // of the source; "" if it was not built from a checkout
	Modified bool   `json:"modified"` // the checkout had changes
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

func buildInfo() build {
	b := build{Version: "unknown", Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	b.Version = info.Main.Version
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Revision = s.Value
		case "vcs.modified":
			b.Modified = s.Value == "true"
		}
	}
	return b
}

func newVersion() *cobra.Command {
	out := format{"table", "json"}.flag()
	c := &cobra.Command{
		Use:   "version",
		Short: "Print the version, the source's revision and Go's version",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			b := buildInfo()
			if out.value == "json" {
				return writeJSON(c.OutOrStdout(), b)
			}
			if b.Modified {
				b.Revision += " with changes"
			}
			_, err := fmt.Fprintf(c.OutOrStdout(), "kubectl-kek  %s\nrevision     %s\ngo           %s %s\n", b.Version, b.Revision, b.Go, b.Platform)
			return err
		},
	}
	out.register(c)
	return c
}

func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

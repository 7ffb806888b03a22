package main

import (
	"crypto/fips140"
	"encoding/json"
	"fmt"
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

	// FIPS140 tells whether Go's Cryptographic Module runs in FIPS 140-3 mode
	// (GODEBUG=fips140=on), and FIPS140Module which one was built in (GOFIPS140).
	FIPS140       bool   `json:"fips140"`
	FIPS140Module string `json:"fips140Module"`
}

func buildInfo() build {
	b := build{Version: "unknown", Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH, FIPS140: fips140.Enabled(), FIPS140Module: fips140.Version()}
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
	var out output
	c := &cobra.Command{
		Use:   "version",
		Short: "Print the version, the source's revision, Go's version and the FIPS 140-3 state",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			b := buildInfo()
			if out == outputJSON {
				return writeJSON(c, b)
			}
			revision := b.Revision
			if b.Modified {
				revision += " with changes"
			}
			fips := "off"
			if b.FIPS140 {
				fips = "on"
			}
			_, err := fmt.Fprintf(c.OutOrStdout(), "kube-kek    %s\nrevision    %s\ngo          %s %s\nFIPS 140-3  %s, module %s\n",
				b.Version, revision, b.Go, b.Platform, fips, b.FIPS140Module)
			return err
		},
	}
	out.register(c)
	return c
}

// output is the value of -o.
type output string

const (
	outputTable output = "table"
	outputJSON  output = "json"
)

func (o *output) register(c *cobra.Command) {
	*o = outputTable
	c.Flags().VarP(o, "output", "o", "table or json")
}

// String, Set and Type make output a flag's value.
func (o *output) String() string { return string(*o) }

func (o *output) Set(s string) error {
	switch v := output(s); v {
	case outputTable, outputJSON:
		*o = v
		return nil
	}
	return fmt.Errorf("must be table or json")
}

func (o *output) Type() string { return "FORMAT" }

func writeJSON(c *cobra.Command, v any) error {
	e := json.NewEncoder(c.OutOrStdout())
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

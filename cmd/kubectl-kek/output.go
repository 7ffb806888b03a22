package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// format lists what -o can be; the first is what it is unless set.
type format []string

func (f format) flag() *output { return &output{f, f[0]} }

// output is the value of -o.
type output struct {
	allowed format
	value   string
}

func (o *output) register(c *cobra.Command) {
	c.Flags().VarP(o, "output", "o", strings.Join(o.allowed, ", "))
}

// String, Set and Type make output a flag's value.
func (o *output) String() string { return o.value }

func (o *output) Set(s string) error {
	if !slices.Contains(o.allowed, s) {
		return fmt.Errorf("must be one of %s", strings.Join(o.allowed, ", "))
	}
	o.value = s
	return nil
}

func (o *output) Type() string { return "FORMAT" }

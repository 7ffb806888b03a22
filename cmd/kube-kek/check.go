package main

import (
	"context"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"github.com/kube-kek/kube-kek/cmd/kube-kek/internal/config"
	"github.com/kube-kek/kube-kek/kek"
	"github.com/kube-kek/kube-kek/kek/localkek"
)

// result is the outcome of one check.
type result string

const (
	good result = "ok"
	warn result = "warning" // serve works; an operator should know
	bad  result = "failed"  // serve would not work
)

// finding is one line of the report.
type finding struct {
	Check      string  `json:"check"` // the field that it is about, and the operation
	Result     result  `json:"result"`
	Detail     string  `json:"detail,omitempty"`
	Permission string  `json:"permission,omitempty"` // that is missing
	Seconds    float64 `json:"seconds,omitempty"`    // that a call took, with its retries
}

// report gathers findings in order.
type report struct {
	OK     bool      `json:"ok"` // serve would work
	Checks []finding `json:"checks"`
}

func (r *report) add(check string, res result, format string, args ...any) {
	r.put(finding{Check: check, Result: res, Detail: fmt.Sprintf(format, args...)})
}

func (r *report) put(f finding) {
	r.Checks = append(r.Checks, f)
	r.OK = r.OK && f.Result != bad
}

func newCheck() *cobra.Command {
	var o options
	var out output
	var restart bool
	c := &cobra.Command{
		Use:   "check",
		Short: "Find out whether serve would work, with the same flags",
		Long: `Reads the configuration, asks each KEK for its current version, has it wrap and
unwrap a random key, and looks at the socket's directory, the health address and
the audit log. It serves nothing and changes nothing.

A warning does not stop serve. A KEK of previous need not be allowed to wrap.

Where a plugin runs already, --restart judges as if it had been stopped: whether
it would come back with this configuration.

Exit codes: 0 serve would work, 1 a check failed, 2 the flags or the configuration
are wrong.`,
		Example: `  kube-kek check --config /etc/kube-kek/config.yaml
  kube-kek check --config /etc/kube-kek/config.yaml --restart
  kube-kek check --kek awskms:///alias/k8s --cluster prod-eu-1 --socket /run/kube-kek/kube-kek.sock -o json`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			harden()
			d, err := o.load(c.Flags())
			if err != nil {
				return err
			}
			homes := openHomes(c.Context(), d, kek.NewCallMetrics(prometheus.NewRegistry()))
			if err := d.Err(); err != nil {
				return err
			}
			r := check(c.Context(), d.Config, homes, restart)
			if out == outputJSON {
				err = writeJSON(c, r)
			} else {
				err = r.table(c)
			}
			if err != nil {
				return failure{err}
			}
			if !r.OK {
				return failure{fmt.Errorf("serve would not work; see the checks that failed")}
			}
			return nil
		},
	}
	o.register(c.Flags())
	c.Flags().BoolVar(&restart, "restart", false, "the kube-kek that runs now will be stopped first; its socket does not count as taken")
	out.register(c)
	return c
}

func check(ctx context.Context, c config.Config, homes []localkek.Home, restart bool) *report {
	r := &report{OK: true}
	r.add("config", good, "cluster %s, lease %s, renew %s", c.Cluster, c.Lease, c.Renew)
	for i, k := range c.KEKs() {
		checkHome(ctx, r, k, homes[i], time.Duration(c.Timeouts.Call))
		homes[i].Provider.Close()
	}
	checkSocket(r, c.Socket.Path, restart)
	checkSocketFiles(r, c.Socket.Path)
	checkSocketOwner(r, c.Socket)
	checkHealth(r, c.Health.Address)
	checkAudit(r, c.Audit)
	return r
}

func (r *report) table(c *cobra.Command) error {
	w := tabwriter.NewWriter(c.OutOrStdout(), 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "CHECK\tRESULT\tTIME\tDETAIL")
	for _, f := range r.Checks {
		took := ""
		if f.Seconds > 0 {
			took = millis(f.Seconds)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", f.Check, f.Result, took, f.Detail)
	}
	return w.Flush()
}

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kube-kek/kube-kek/plugin/bench"
)

func newBench() *cobra.Command {
	var endpoint, restart string
	var hookTimeout time.Duration
	var o bench.Options
	out := format{"table", "json"}.flag()
	c := &cobra.Command{
		Use:   "bench --endpoint unix:///PATH",
		Short: "Measure any KMS v2 plugin against a bare gRPC service on the same machine",
		Long: `Measures how long a running KMS v2 plugin takes for Status, Encrypt and Decrypt and how
many calls a second it answers, over one connection, as kube-apiserver has. By turns
it measures a bare service, a process of its own that answers as many bytes and does
nothing else; "vs bare" is the plugin's figure divided by the bare service's. So the
ratios can be compared between machines, and the times cannot.

  Status         the plugin's state
  Encrypt        of one seed, again and again
  Decrypt, warm  of one record, again and again
  Decrypt, cold  of --seeds distinct records, each once. With --restart-cmd the plugin
                 is restarted before, so it knows nothing but what is on its disk.
                 Without, it has encrypted these seeds a moment ago: a plugin that
                 keeps what it encrypted, or one key for many seeds, is warm then.
  restart storm  all --seeds are asked for at once, from the moment that --restart-cmd
                 has ended, and again where a call fails, until each was given back:
                 what a kube-apiserver without its seed cache does to the plugin.

Each call has 3 s, kube-apiserver's default, and one that fails ends the bench, but in
the storm. Each Encrypt and Decrypt may be a paid call of the plugin's KMS. Histograms
are drawn of the last of --concurrency; -o json has them all.

Exit codes: 0 it was measured, 1 a call or the restart failed, 2 the flags are wrong or
the plugin cannot be reached.`,
		Example: `  kubectl kek bench --endpoint unix:///run/kmsplugin/socket.sock
  kubectl kek bench --endpoint unix:///run/kms.sock --restart-cmd 'systemctl restart my-kms' --seeds 5000
  kubectl kek bench --endpoint unix:///run/kms.sock --concurrency 1 --requests 500 -o json`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if slices.Min(append(o.Concurrency, o.Requests, o.Seeds)) < 1 || len(o.Concurrency) == 0 {
				return errors.New("--concurrency, --requests and --seeds must be 1 at least")
			}
			target, err := reach(endpoint)
			if err != nil {
				return err
			}
			self, err := os.Executable()
			if err != nil {
				return exit{exitFailed, err}
			}
			o.Baseline = []string{self, baselineCommand}
			if hook := shell(restart, hookTimeout); hook != nil {
				o.Restart = func(ctx context.Context) error {
					if said, err := hook(ctx); err != nil {
						return errors.New(strings.TrimSuffix(fmt.Sprintf("--%s: %v: %s", flagOf("restart"), err, said), ": "))
					}
					return nil
				}
			}
			line := newProgress(c.ErrOrStderr())
			o.Progress = func(what string, n, of int) { line.say(n, of, what) }
			r, err := bench.Run(c.Context(), target, o)
			line.clear()
			if c.Context().Err() != nil {
				return fmt.Errorf("bench was ended early: %w", err)
			}
			if err != nil {
				return exit{exitFailed, fmt.Errorf("bench of %s: %w", endpoint, err)}
			}
			if out.value == "json" {
				return writeJSON(c.OutOrStdout(), benchJSON(r))
			}
			return writeBench(c.OutOrStdout(), r)
		},
	}
	f := c.Flags()
	f.StringVar(&endpoint, "endpoint", "", endpointUsage)
	f.IntSliceVar(&o.Concurrency, "concurrency", []int{1, 8, 64}, "how many `CALLERS` at once; one measurement each")
	f.IntVar(&o.Requests, "requests", 2000, "`CALLS` of each operation at each concurrency")
	f.IntVar(&o.Seeds, "seeds", 1000, "distinct `SEEDS` of cold Decrypts and of the storm")
	f.StringVar(&restart, flagOf("restart"), "", "`COMMAND` for /bin/sh that restarts the plugin at the same endpoint")
	registerTimeout(f, &hookTimeout)
	c.MarkFlagRequired("endpoint")
	out.register(c)
	return c
}

// baselineCommand is how bench starts itself as the bare service.
const baselineCommand = "bench-baseline"

func newBaseline() *cobra.Command {
	return &cobra.Command{
		Use:    baselineCommand,
		Short:  "Serve as the bare service of bench, until the input ends",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE:   func(c *cobra.Command, _ []string) error { return bench.ServeBaseline(c.InOrStdin()) },
	}
}

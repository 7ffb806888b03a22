// Command kubectl-kek is what operators of KMS v2 plugins run by hand and in CI.
// With it in the PATH, kubectl runs it as `kubectl kek`.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

// The exit codes of every command, which scripts may lean on.
const (
	exitOK     = 0
	exitFailed = 1 // what was asked for did not work; of conformance: a MUST failed
	exitUsage  = 2 // the flags are wrong, the plugin cannot be reached, or the run was ended early
	exitShould = 3 // of conformance: no MUST failed, a SHOULD did
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := newCommand().ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	code := exitUsage
	var x exit
	if errors.As(err, &x) {
		code, err = x.code, x.err
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "kubectl kek: %v\n", err)
	}
	return code
}

// exit is the error of a command that ends with another code than exitUsage. One
// without an error has said all already.
type exit struct {
	code int
	err  error
}

func (x exit) Error() string { return fmt.Sprint(x.err) }
func (x exit) Unwrap() error { return x.err }

func newCommand() *cobra.Command {
	root := &cobra.Command{
		Use:         "kubectl-kek",
		Annotations: map[string]string{cobra.CommandDisplayNameAnnotation: "kubectl kek"},
		Short:       "Look after the encryption at rest of a Kubernetes cluster",
		Long: `kubectl kek holds any KMS v2 plugin to what Kubernetes demands of it, and measures
what it costs.

Exit codes: 0 it worked, 1 it did not, 2 the flags are wrong, the plugin cannot be
reached or the run was ended early.`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(newConformance(), newBench(), newBaseline(), newVersion())
	return root
}

// Command kube-kek is a Kubernetes KMS v2 plugin: kube-apiserver's Secrets are
// encrypted under a key that never leaves its home, and stay readable while that
// home cannot be reached. It links no Kubernetes client and no etcd client.
package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"
)

// The exit codes of every command, which scripts may lean on.
const (
	exitOK     = 0
	exitFailed = 1 // what was asked for did not work
	exitUsage  = 2 // the flags or the configuration are wrong
)

func main() { os.Exit(run()) }

func run() int {
	err := newCommand().Execute()
	if err == nil {
		return exitOK
	}
	var f failure
	failed := errors.As(err, &f)
	if !failed || f.err != nil {
		fmt.Fprintf(os.Stderr, "kube-kek: %v\n", err)
	}
	if failed {
		return exitFailed
	}
	return exitUsage
}

// failure is the error of a command that was understood and did not work. One
// without an error has said so already.
type failure struct{ err error }

func (f failure) Error() string { return fmt.Sprint(f.err) }
func (f failure) Unwrap() error { return f.err }

func newCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "kube-kek",
		Short: "A Kubernetes KMS v2 plugin that outlives an outage of its KMS",
		Long: `kube-kek encrypts the Secrets of a Kubernetes cluster under a key in a KMS.

Exit codes: 0 it worked, 1 it did not, 2 the flags or the configuration are wrong.`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(newServe(), newCheck(), newProbe(), newKeyset(), newEncryptionConfig(), newVersion())
	return root
}

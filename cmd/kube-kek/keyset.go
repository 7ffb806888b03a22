package main

import (
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/kube-kek/kube-kek/kek"
	"github.com/kube-kek/kube-kek/kek/tinkkeyset"
)

func newKeyset() *cobra.Command {
	c := &cobra.Command{
		Use:   "keyset",
		Short: "Make and rotate the key file of a tink-keyset KEK",
		Long: `A tink-keyset KEK is a file that holds its keys in clear, readable by its owner
alone. It protects copies of etcd that leave the node without it (backups,
snapshots), not the node's own disk, where both lie together. It is for trying
out, for labs, and for edge nodes whose disk is encrypted.`,
		Args: cobra.NoArgs, // else cobra takes an unknown verb for a call for help
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(
		&cobra.Command{
			Use:     "create PATH",
			Short:   "Make a keyset file with one key, mode 0600; an existing file is left alone",
			Example: "  kube-kek keyset create /etc/kube-kek/keyset.json",
			Args:    cobra.ExactArgs(1),
			RunE: func(c *cobra.Command, args []string) error {
				ref, err := onKeyset(tinkkeyset.Create, args[0])
				if err != nil {
					return failure{err}
				}
				_, err = fmt.Fprintf(c.OutOrStdout(), `created %s
key     %s:%s

Next: copy the file to a safe place away from etcd's backups: without it, nothing
that is encrypted under it can be read. Then serve it:
  kube-kek serve --kek %s://%s --cluster NAME --socket /run/kube-kek/kube-kek.sock

Whoever reads this file and etcd reads every Secret. It is for trying out, labs,
and edge nodes whose disk is encrypted.
`, ref.ID, tinkkeyset.Scheme, ref, tinkkeyset.Scheme, ref.ID)
				return err
			},
		},
		&cobra.Command{
			Use:     "rotate PATH",
			Short:   "Add a new key to a keyset file and write under it from now on",
			Example: "  kube-kek keyset rotate /etc/kube-kek/keyset.json",
			Args:    cobra.ExactArgs(1),
			RunE: func(c *cobra.Command, args []string) error {
				ref, err := onKeyset(tinkkeyset.Rotate, args[0])
				if err != nil {
					return failure{err}
				}
				_, err = fmt.Fprintf(c.OutOrStdout(), `rotated %s
key     %s:%s

Next: copy the file to its safe place again, and to each other control-plane node.
A running kube-kek sees the new key at its next renewal, without a restart. Older
keys stay in the file, because records are still stored under them.
`, ref.ID, tinkkeyset.Scheme, ref)
				return err
			},
		},
	)
	return c
}

// onKeyset lets a path be relative to where the command runs.
func onKeyset(do func(string) (kek.KeyRef, error), path string) (kek.KeyRef, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return kek.KeyRef{}, err
	}
	return do(abs)
}

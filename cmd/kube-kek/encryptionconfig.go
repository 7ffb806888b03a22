package main

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

var (
	providerName = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$`)
	resourceName = regexp.MustCompile(`^[a-z0-9*]([a-z0-9.*-]{0,251}[a-z0-9*])?$`)
)

func newEncryptionConfig() *cobra.Command {
	var socket, name string
	var resources []string
	c := &cobra.Command{
		Use:   "encryption-config --socket PATH",
		Short: "Print the EncryptionConfiguration for a plugin's socket",
		Long: `Prints the file that kube-apiserver's --encryption-provider-config names.

identity comes last, so that what was written before stays readable; once all is
rewritten, take it out.`,
		Example: "  kube-kek encryption-config --socket /run/kube-kek/kube-kek.sock >/etc/kubernetes/encryption.yaml",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if !strings.HasPrefix(socket, "/") {
				return fmt.Errorf("--socket must be an absolute path, not %q", socket)
			}
			if !providerName.MatchString(name) {
				return fmt.Errorf("--name must be 1 to 63 lower-case letters, digits, '-' and '.', not %q", name)
			}
			if len(resources) == 0 || slices.ContainsFunc(resources, func(r string) bool { return !resourceName.MatchString(r) }) {
				return fmt.Errorf("--resource must be RESOURCE or RESOURCE.GROUP, such as secrets, not %q", resources)
			}
			_, err := fmt.Fprintf(c.OutOrStdout(), encryptionConfig, quoted(resources), name, "unix://"+socket)
			return err
		},
	}
	c.Flags().StringVar(&socket, "socket", "", "absolute `PATH` of the plugin's unix socket")
	c.Flags().StringVar(&name, "name", "kube-kek", "`NAME` of the provider; it becomes part of every record, so it cannot change later")
	c.Flags().StringSliceVar(&resources, "resource", []string{"secrets"}, "`RESOURCE` to encrypt, repeatable")
	c.MarkFlagRequired("socket")
	return c
}

const encryptionConfig = `apiVersion: apiserver.config.k8s.io/v1
kind: EncryptionConfiguration
resources:
- resources: [%s]
  providers:
  - kms:
      apiVersion: v2
      name: %q
      endpoint: %q
      timeout: 3s
  - identity: {}
`

func quoted(ss []string) string {
	var out []string
	for _, s := range ss {
		out = append(out, fmt.Sprintf("%q", s))
	}
	return strings.Join(out, ", ")
}

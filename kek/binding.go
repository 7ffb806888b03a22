package kek

import (
	"maps"
	"slices"

	"golang.org/x/crypto/cryptobyte"
)

// Binding is the set of name-value pairs that every wrap of a cluster is bound
// to: AWS's encryption context, additional authenticated data elsewhere. It is
// not secret; homes write it to their audit logs. IAM policies can demand it,
// and another cluster's records cannot be unwrapped without it.
type Binding map[string]string

// ClusterKey is the name of the pair that holds the cluster's name.
const ClusterKey = "kube-kek.io/cluster"

// NewBinding returns the binding of a cluster, with more pairs if wanted.
func NewBinding(cluster string, more map[string]string) Binding {
	b := Binding{}
	maps.Copy(b, more)
	b[ClusterKey] = cluster
	return b
}

// Bytes returns the pairs in one order and framing, for homes that bind to
// bytes: each name and value behind its length in two bytes, sorted by name. It
// panics on a name or value of 64 KiB or more, which configurations do not let
// through.
func (b Binding) Bytes() []byte {
	var out cryptobyte.Builder
	for _, name := range slices.Sorted(maps.Keys(b)) {
		for _, s := range []string{name, b[name]} {
			out.AddUint16LengthPrefixed(func(c *cryptobyte.Builder) { c.AddBytes([]byte(s)) })
		}
	}
	return out.BytesOrPanic()
}

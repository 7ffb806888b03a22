// Package e2e proves kube-kek's promises on real parts: kube-apiserver and etcd
// as they are released, the daemon as a process, and a stand-in for AWS KMS
// behind a proxy that makes faults. Each file is one promise. What was written
// is read back through kube-apiserver and looked at in etcd.
//
// The first run builds the parts, which takes some minutes (go run ./cmd/parts
// does only that); nothing is skipped for want of one.
package e2e

import (
	"flag"
	"os"
	"testing"
)

// TestMain lets more tests run side by side than there are CPUs: they wait, for
// intervals that are kube-apiserver's own, far more than they compute.
func TestMain(m *testing.M) {
	flag.Parse()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if !given {
		flag.Set("test.parallel", "4")
	}
	os.Exit(m.Run())
}

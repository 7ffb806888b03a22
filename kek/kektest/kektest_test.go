package kektest

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kube-kek/kube-kek/kek"
)

var (
	clusterA = kek.NewBinding("a", nil)
	clusterB = kek.NewBinding("b", nil)
)

// fakeHarness handles f, and lets plant put a fault into its providers.
func fakeHarness(f *Provider, decorate func(kek.Provider) kek.Provider) Harness {
	fail := func(kind kek.Kind) func(testing.TB) func() {
		return func(testing.TB) func() {
			f.Fail(kind)
			return func() { f.Heal() }
		}
	}
	other := New(Config{ID: "other", Binding: clusterA})
	return Harness{
		New:      func(testing.TB) kek.Provider { return decorate(f) },
		Other:    func(testing.TB) kek.Provider { return decorate(other) },
		Foreign:  func(testing.TB) kek.Provider { return decorate(f.Bound(clusterB)) },
		Rotate:   func(testing.TB) { f.Rotate() },
		Disable:  func(testing.TB) func() { f.Disable(); return func() { f.Enable() } },
		Remove:   func(testing.TB) func() { f.Remove(); return func() { f.Restore() } },
		Deny:     fail(kek.Denied),
		Expire:   fail(kek.Unauthenticated),
		Throttle: fail(kek.Throttled),
		Cut:      fail(kek.Unavailable),
		Hang:     func(testing.TB) func() { return f.Hang() },
	}
}

// longVersion names versions that key IDs must cut.
func longVersion(n int) string { return fmt.Sprintf("%08x", n) + strings.Repeat("f", 40) }

func TestTheFakeIsAProvider(t *testing.T) {
	Run(t, fakeHarness(New(Config{Binding: clusterA}), func(p kek.Provider) kek.Provider { return p }))
}

func TestAHarnessMustSayWhatItLacks(t *testing.T) {
	whole := fakeHarness(New(Config{}), func(p kek.Provider) kek.Provider { return p })
	tests := map[string]struct {
		change func(*Harness)
		want   []string
	}{
		"all given":         {func(*Harness) {}, nil},
		"nil with reason":   {func(h *Harness) { h.Cut = nil; h.Lacks = map[string]string{"Cut": "no wire"} }, nil},
		"nil without":       {func(h *Harness) { h.Cut = nil }, []string{"Cut is nil, and Lacks gives no reason"}},
		"given with reason": {func(h *Harness) { h.Lacks = map[string]string{"Hang": "x"} }, []string{"Hang is given, and Lacks says why it is not: x"}},
		"no such field":     {func(h *Harness) { h.Lacks = map[string]string{"New": "x"} }, []string{`Lacks names "New", which no home may lack or no field is called`}},
		"no provider":       {func(h *Harness) { h.New = nil }, []string{"New and Other must be given"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			h := whole
			test.change(&h)
			if diff := cmp.Diff(test.want, h.problems()); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
		})
	}
}

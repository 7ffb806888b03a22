// Package kektest holds what every [kek.Provider] must pass ([Run]) and a
// provider in memory with faults to inject ([Provider]), for the tests of what
// is built on providers.
package kektest

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/kube-kek/kube-kek/kek"
	"github.com/prometheus/client_golang/prometheus"
)

// Harness is how [Run] handles one home. All funcs speak of one KEK at one home,
// which lives as long as the test; only the provider is made anew for each check.
//
// The funcs that begin a fault return what ends it. After that the home must
// work again at once, for providers that lived through the fault too. A fault
// holds for every operation: Current, Wrap and Unwrap.
//
// A field that the home has no means for is left nil, and Lacks says why. A
// field that is nil without a reason fails the test: nothing is left out in
// silence.
type Harness struct {
	// New returns a new provider of the KEK. It must not be nil. It may close
	// the provider in t.Cleanup.
	New func(t testing.TB) kek.Provider

	// Other returns a provider of another KEK of the same home, with the same
	// binding. It must not be nil.
	Other func(t testing.TB) kek.Provider

	// Foreign returns a provider of the KEK with another cluster's binding.
	Foreign func(t testing.TB) kek.Provider

	// Rotate makes a new version of the KEK and makes it current. It is called
	// often: old versions must go on opening what they wrapped.
	Rotate func(t testing.TB)

	// Disable disables the KEK with all its versions: KeyDisabled.
	Disable func(t testing.TB) (enable func())

	// Remove makes the home answer that it has no such key: KeyNotFound.
	Remove func(t testing.TB) (restore func())

	// Deny makes the home forbid us everything, knowing who we are: Denied.
	Deny func(t testing.TB) (allow func())

	// Expire makes the home refuse our credentials: Unauthenticated.
	Expire func(t testing.TB) (renew func())

	// Throttle makes the home refuse every call for its rate: Throttled. A
	// Retry-After should be short, as the retrying forms obey it.
	Throttle func(t testing.TB) (unthrottle func())

	// Cut makes the home unreachable, so that a call fails soon: Unavailable.
	Cut func(t testing.TB) (heal func())

	// Hang makes the home take calls and not answer, until it is released.
	Hang func(t testing.TB) (release func())

	// Lacks gives, by field name, the reason why the home has no such thing:
	// {"Throttle": "a file has no rate limit"}.
	Lacks map[string]string
}

// Run checks that the providers of h keep the contract of [kek.Provider]: bare,
// below each of kek's decorators, and below their stack.
func Run(t *testing.T, h Harness) {
	for _, problem := range h.problems() {
		t.Errorf("harness: %s", problem)
	}
	if t.Failed() {
		return
	}
	for _, form := range forms() {
		t.Run(form.name, func(t *testing.T) {
			for _, c := range checks() {
				t.Run(c.name, func(t *testing.T) { c.run(t, h.decorated(form.decorate)) })
			}
		})
	}
}

type form struct {
	name     string
	decorate func(kek.Provider) kek.Provider
}

// forms are the ways in which a daemon may hold a provider. The time limit is so
// long that it ends no check.
func forms() []form {
	metrics := func(p kek.Provider) kek.Provider {
		return kek.Metrics(p, "kektest", kek.NewCallMetrics(prometheus.NewRegistry()))
	}
	timeout := func(p kek.Provider) kek.Provider { return kek.Timeout(p, time.Minute) }
	return []form{
		{"bare", func(p kek.Provider) kek.Provider { return p }},
		{"timeout", timeout},
		{"retry", kek.Retry},
		{"metrics", metrics},
		{"retry of metrics of timeout", func(p kek.Provider) kek.Provider { return kek.Retry(metrics(timeout(p))) }},
	}
}

func (h Harness) decorated(decorate func(kek.Provider) kek.Provider) Harness {
	for _, f := range []*func(testing.TB) kek.Provider{&h.New, &h.Other, &h.Foreign} {
		if inner := *f; inner != nil {
			*f = func(t testing.TB) kek.Provider { return decorate(inner(t)) }
		}
	}
	return h
}

// fault is a state of the home that every operation must answer with one kind.
type fault struct {
	field string
	what  string
	begin func(testing.TB) func()
	kind  kek.Kind
}

func (h Harness) faults() []fault {
	return []fault{
		{"Disable", "a disabled key", h.Disable, kek.KeyDisabled},
		{"Remove", "a missing key", h.Remove, kek.KeyNotFound},
		{"Deny", "a denied caller", h.Deny, kek.Denied},
		{"Expire", "a caller without valid credentials", h.Expire, kek.Unauthenticated},
		{"Throttle", "a home that throttles", h.Throttle, kek.Throttled},
		{"Cut", "an unreachable home", h.Cut, kek.Unavailable},
	}
}

// problems says what is wrong with the harness itself.
func (h Harness) problems() []string {
	var out []string
	given := map[string]bool{"Foreign": h.Foreign != nil, "Rotate": h.Rotate != nil, "Hang": h.Hang != nil}
	for _, f := range h.faults() {
		given[f.field] = f.begin != nil
	}
	for field, is := range given {
		switch reason := h.Lacks[field]; {
		case is && reason != "":
			out = append(out, fmt.Sprintf("%s is given, and Lacks says why it is not: %s", field, reason))
		case !is && reason == "":
			out = append(out, fmt.Sprintf("%s is nil, and Lacks gives no reason", field))
		}
	}
	for field := range h.Lacks {
		if _, ok := given[field]; !ok {
			out = append(out, fmt.Sprintf("Lacks names %q, which no home may lack or no field is called", field))
		}
	}
	if h.New == nil || h.Other == nil {
		out = append(out, "New and Other must be given")
	}
	slices.Sort(out)
	return out
}

// lacks reports whether the home lacks the field, and tells so.
func (h Harness) lacks(t testing.TB, field string) bool {
	t.Helper()
	reason, lacks := h.Lacks[field]
	if lacks {
		t.Logf("not checked, this home lacks %s: %s", field, reason)
	}
	return lacks
}

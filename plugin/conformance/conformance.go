// Package conformance holds any KMS v2 plugin to what Kubernetes demands of it,
// through its socket alone.
//
// [Check] runs the checks and returns a [Report]; [Run] does the same in a Go
// test. A check sends what kube-apiserver sends, or what it never should, and
// says what came back. Stories are checks that need the world around the plugin
// to change (its key rotates, its KMS goes away, it is killed): they run where
// the hooks that do so are given.
//
//	report, err := conformance.Check(ctx, "unix:///run/kms.sock", conformance.Options{})
//
// Nothing but a hook changes the plugin or its KMS. What a check sends derives
// from [Options.Seed] and the check's name.
//
// Two demands cannot be seen so: that a request's UID is logged, and that a key
// which comes back after it was left (A→B→A) has a name of its own.
package conformance

import (
	"context"
	"fmt"
	"regexp"
	"testing"
	"time"
)

// Level is how much a check's demand weighs.
type Level string

// The levels.
const (
	Must   Level = "MUST"   // KEP-3299, the API or kube-apiserver's code demands it
	Should Level = "SHOULD" // the documentation asks for it, or a breach hurts a control plane
	Advice Level = "ADVICE" // ours, from what users of plugins suffered
)

// Verdict is how a check ended.
type Verdict string

// The verdicts.
const (
	Pass Verdict = "pass"
	Fail Verdict = "fail"
	Skip Verdict = "skip" // could not be checked; Seen has the reason
)

// Info is what is known of a check before it runs.
type Info struct {
	Name   string   // stable, in kebab case
	Level  Level    // of its demand
	Source string   // where the demand stands
	About  string   // the demand in one sentence
	Needs  []string // the hooks without which it is skipped, as [Hooks] names them
}

// Story reports whether the check needs hooks.
func (i Info) Story() bool { return len(i.Needs) > 0 }

// Result is how one check went.
type Result struct {
	Name     string
	Level    Level
	Source   string
	About    string
	Verdict  Verdict
	Seen     string        // what was sent, what came back; the reason of a skip
	Duration time.Duration // of the check
}

// Report is how a run went.
type Report struct {
	Endpoint string
	Started  time.Time
	Duration time.Duration
	Seed     uint64
	KeyID    string   // that Status answered at the start, "" if it did not
	Results  []Result // in the order of [List]
}

// Failed reports whether a check of the level failed.
func (r Report) Failed(l Level) bool { return len(r.Failures(l)) > 0 }

// Failures returns the failed checks of the levels, all levels if none is named.
func (r Report) Failures(levels ...Level) []Result {
	if len(levels) == 0 {
		levels = []Level{Must, Should, Advice}
	}
	var failed []Result
	for _, res := range r.Results {
		for _, l := range levels {
			if res.Verdict == Fail && res.Level == l {
				failed = append(failed, res)
			}
		}
	}
	return failed
}

// Count returns how many checks ended so.
func (r Report) Count(v Verdict) int {
	n := 0
	for _, res := range r.Results {
		if res.Verdict == v {
			n++
		}
	}
	return n
}

// Hook changes the world around the plugin and returns when that is done. Its
// output is shown where it failed; only KMSCalls is read for more.
type Hook func(ctx context.Context) (output string, err error)

// Hooks are what stories need. A nil hook is not given.
type Hooks struct {
	Rotate     Hook // makes a new version of the KEK current ("rotate")
	KMSDown    Hook // takes the KMS away from the plugin ("kms-down")
	KMSUp      Hook // gives it back ("kms-up")
	Restart    Hook // ends the plugin if it runs, and starts it at the same endpoint ("restart")
	Kill       Hook // ends the plugin with SIGKILL ("kill"); whoever supervises it, or Restart, starts it again
	DisableKey Hook // disables the KEK ("disable-key")
	EnableKey  Hook // enables it again ("enable-key")
	KMSCalls   Hook // outputs how many calls the KMS has had so far, as a decimal number ("kms-calls")
}

func (h Hooks) byName() map[string]Hook {
	return map[string]Hook{
		"rotate": h.Rotate, "kms-down": h.KMSDown, "kms-up": h.KMSUp, "restart": h.Restart, "kill": h.Kill,
		"disable-key": h.DisableKey, "enable-key": h.EnableKey, "kms-calls": h.KMSCalls,
	}
}

// Options choose and tune the checks. The zero value is ready.
type Options struct {
	// Seed is where plaintexts, flipped bits and samples come from, so that a
	// finding can be seen again.
	Seed uint64

	// Run chooses the checks whose name it matches. nil is all.
	Run *regexp.Regexp

	// Hooks let the stories run.
	Hooks Hooks

	// Within is how long the plugin may take to see a rotation, a disabled key
	// or the end of an outage. 0 is 10 minutes.
	Within time.Duration

	// Outage is how long the KMS is away in an outage's story before the plugin
	// is asked for more than its Status. 0 is 20 seconds.
	Outage time.Duration

	// CallerUID is the user, other than root, as whom a process tries to connect
	// and must be refused. It is tried only as root. 0 is 65534, nobody.
	CallerUID uint32

	// Quick sends a twentieth of the load, for a plugin's own tests.
	Quick bool

	// Begin is called before each check and Progress after it, one at a time.
	// Either may be nil.
	Begin    func(Info)
	Progress func(Result)
}

// The defaults of Options.
const (
	DefaultWithin    = 10 * time.Minute
	DefaultOutage    = 20 * time.Second
	DefaultCallerUID = 65534
)

func (o Options) withDefaults() (Options, error) {
	if o.Within == 0 {
		o.Within = DefaultWithin
	}
	if o.Outage == 0 {
		o.Outage = DefaultOutage
	}
	if o.CallerUID == 0 {
		o.CallerUID = DefaultCallerUID
	}
	if o.Within < 0 || o.Outage < 0 {
		return o, fmt.Errorf("within (%s) and outage (%s) must be more than 0", o.Within, o.Outage)
	}
	if o.Run == nil {
		return o, nil
	}
	for _, c := range checks {
		if o.Run.MatchString(c.Name) {
			return o, nil
		}
	}
	return o, fmt.Errorf("no check's name matches %q", o.Run)
}

// List returns every check in the order in which they run.
func List() []Info {
	var all []Info
	for _, c := range checks {
		all = append(all, c.Info)
	}
	return all
}

// Check runs the checks against the plugin at endpoint: unix:///PATH, or
// unix:@NAME for an abstract socket. The error says that nobody answers there,
// that an option is wrong, that a hook failed (the checks that need it are
// skipped) or that ctx ended; the report has what was seen until then.
func Check(ctx context.Context, endpoint string, o Options) (Report, error) {
	o, err := o.withDefaults()
	if err != nil {
		return Report{}, fmt.Errorf("conformance: %w", err)
	}
	s, err := newSession(ctx, endpoint, o)
	if err != nil {
		return Report{}, fmt.Errorf("conformance: %w", err)
	}
	defer s.close()
	return s.run(ctx)
}

// Run is [Check] in a Go test: each check is a subtest that fails with a failed
// MUST or SHOULD, and logs what else there is to know.
func Run(t *testing.T, endpoint string, o Options) {
	t.Helper()
	report, err := Check(t.Context(), endpoint, o)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range report.Results {
		t.Run(r.Name, func(t *testing.T) {
			t.Logf("%s (%s, %s): %s\n%s", r.Verdict, r.Level, r.Source, r.About, r.Seen)
			switch {
			case r.Verdict == Skip:
				t.SkipNow()
			case r.Verdict == Fail && r.Level != Advice:
				t.Fail()
			}
		})
	}
}

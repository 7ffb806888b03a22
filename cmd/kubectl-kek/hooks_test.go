package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kube-kek/kube-kek/plugin/conformance"
)

func TestHooksAreShellCommands(t *testing.T) {
	const long = time.Minute
	for name, tc := range map[string]struct {
		command string
		timeout time.Duration
		output  string
		err     string
	}{
		"its output is trimmed":               {"echo ' 42'", long, "42", ""},
		"its stderr is not its output":        {"echo warned >&2; echo 42", long, "42", ""},
		"a failure shows its code and stderr": {"echo so far; echo broken >&2; exit 3", long, "broken", "exit status 3"},
		"what takes too long is killed":       {"sleep 600", 50 * time.Millisecond, "", "it was not done in 50ms"},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := shell(tc.command, tc.timeout)(t.Context())
			got := ""
			if err != nil {
				got = err.Error()
			}
			if diff := cmp.Diff(tc.err, got); diff != "" {
				t.Errorf("error (-want +got)\n%s", diff)
			}
			if out != tc.output {
				t.Errorf("output %q, want %q", out, tc.output)
			}
		})
	}
}

func TestWhatAHookLeavesInTheBackgroundIsNotWaitedFor(t *testing.T) {
	out, err := shell("sleep 600 & echo $!", time.Minute)(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	kill(out)
}

func TestOnlyTheEndOfAHooksStderrIsShown(t *testing.T) {
	said, err := shell("yes first | head -c 5000 >&2; echo the end >&2; exit 1", time.Minute)(t.Context())
	if err == nil || len(said) > shown || !strings.HasSuffix(said, "the end") {
		t.Errorf("got %v, %q", err, said)
	}
}

func TestNoCommandIsNoHook(t *testing.T) {
	if shell("", time.Minute) != nil {
		t.Error("there is a hook")
	}
}

func TestEveryHookOfTheSuiteHasAFlag(t *testing.T) {
	flags := map[string]bool{}
	for _, u := range hookUsage() {
		flags[u.name] = true
	}
	for _, i := range conformance.List() {
		for _, need := range i.Needs {
			if !flags[need] {
				t.Errorf("%s needs %q, which no flag gives", i.Name, need)
			}
		}
	}
}

func TestTheExitCodeIsThatOfTheWorstLevelThatFailed(t *testing.T) {
	for name, tc := range map[string]struct {
		levels []conformance.Level
		want   error
	}{
		"nothing failed":   {nil, nil},
		"advice failed":    {[]conformance.Level{conformance.Advice}, nil},
		"a SHOULD failed":  {[]conformance.Level{conformance.Advice, conformance.Should}, exit{code: exitShould}},
		"a MUST failed":    {[]conformance.Level{conformance.Must}, exit{code: exitFailed}},
		"both have failed": {[]conformance.Level{conformance.Should, conformance.Must}, exit{code: exitFailed}},
	} {
		t.Run(name, func(t *testing.T) {
			var r conformance.Report
			for _, l := range tc.levels {
				r.Results = append(r.Results, conformance.Result{Level: l, Verdict: conformance.Fail})
			}
			if got := verdict(r); got != tc.want {
				t.Errorf("got %#v, want %#v", got, tc.want)
			}
		})
	}
}

func TestProgressIsOneLineOfATerminalAndNothingElsewhere(t *testing.T) {
	var b bytes.Buffer
	p := newProgress(&b)
	p.say(1, 2, "a check")
	p.clear()
	if b.Len() > 0 {
		t.Errorf("%q went where no terminal is", b.String())
	}
	p = &progress{w: &b, width: 12, on: true}
	p.say(1, 2, "a check of a long name")
	p.clear()
	if want := "\r\x1b[K[1/2] a che\r\x1b[K"; b.String() != want {
		t.Errorf("got %q, want %q", b.String(), want)
	}
}

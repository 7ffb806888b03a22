package e2e

import (
	"context"
	"net"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/kube-kek/kube-kek/e2e/internal/lab"
	"github.com/kube-kek/kube-kek/plugin/conformance"
)

// What we ask of any plugin we ask of our own first: as a process, on each home
// of keys, with every story that the home can tell.
func TestOurDaemonPassesEveryCheckAndStoryOnEachHome(t *testing.T) {
	t.Run("AWS", func(t *testing.T) {
		t.Parallel()
		l := lab.Bare(t)
		aws := l.StartAWS()
		plugin := l.StartPlugin(lab.Config{KEK: aws.KEK(), Renew: "1s"})
		conform(t, plugin, conformance.Hooks{
			Rotate: hook(aws.Rotate), KMSDown: hook(aws.Reset), KMSUp: hook(aws.Restore),
			DisableKey: hook(aws.Disable), EnableKey: hook(aws.Enable),
			Kill: hook(plugin.Kill), Restart: hook(func() { restart(l, plugin) }),
			KMSCalls: func(context.Context) (string, error) { return strconv.Itoa(aws.Calls()), nil },
		})
	})
	t.Run("keyset", func(t *testing.T) {
		t.Parallel()
		l := lab.Bare(t)
		keyset := l.CreateKeyset("keyset.json")
		plugin := l.StartPlugin(lab.Config{KEK: keyset.KEK(), Renew: "1s"})
		away := keyset.Path + ".away"
		// A file has no outage, and nobody counts its readers: no hooks for these.
		conform(t, plugin, conformance.Hooks{
			Rotate:     hook(keyset.Rotate),
			DisableKey: func(context.Context) (string, error) { return "", os.Rename(keyset.Path, away) },
			EnableKey:  func(context.Context) (string, error) { return "", os.Rename(away, keyset.Path) },
			Kill:       hook(plugin.Kill), Restart: hook(func() { restart(l, plugin) }),
		}, "kms-down", "kms-calls")
	})
}

func hook(do func()) conformance.Hook {
	return func(context.Context) (string, error) { do(); return "", nil }
}

// restart waits for the socket alone: a plugin that is started in an outage has
// no good Status to wait for.
func restart(l *lab.Lab, p *lab.Plugin) {
	p.Stop()
	p.Start()
	l.Eventually("the socket to listen", 10*time.Second, func() error {
		conn, err := net.Dial("unix", p.Socket)
		if err != nil {
			return err
		}
		return conn.Close()
	})
}

// conform fails the test with what fails at any level, advice too, and with a
// story that was skipped though the home has all the hooks that it needs.
func conform(t *testing.T, p *lab.Plugin, hooks conformance.Hooks, without ...string) {
	t.Helper()
	report, err := conformance.Check(t.Context(), "unix://"+p.Socket, conformance.Options{Hooks: hooks, Within: time.Minute, Outage: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	lacking := map[string]bool{}
	for _, name := range without {
		lacking[name] = true
	}
	told := map[string]bool{} // stories that this home can tell
	for _, info := range conformance.List() {
		told[info.Name] = info.Story()
		for _, need := range info.Needs {
			told[info.Name] = told[info.Name] && !lacking[need]
		}
	}
	for _, r := range report.Results {
		switch {
		case r.Verdict == conformance.Fail:
			t.Errorf("%s (%s, %s): %s\n%s", r.Name, r.Level, r.Source, r.About, r.Seen)
		case r.Verdict == conformance.Skip && told[r.Name]:
			t.Errorf("%s was skipped: %s", r.Name, r.Seen)
		}
	}
	t.Logf("%d checks passed, %d skipped, in %s", report.Count(conformance.Pass), report.Count(conformance.Skip), report.Duration.Round(time.Second))
}

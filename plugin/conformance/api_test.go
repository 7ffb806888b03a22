package conformance_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	v2 "k8s.io/kms/apis/v2"

	"github.com/kube-kek/kube-kek/plugin/conformance"
)

var update = flag.Bool("update", false, "write the golden files")

// People choose checks by name and scripts read their levels: a change of the
// list must be meant.
func TestTheListOfChecks(t *testing.T) {
	var b bytes.Buffer
	seen := map[string]bool{}
	for _, i := range conformance.List() {
		if seen[i.Name] || !regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`).MatchString(i.Name) {
			t.Errorf("the name %q is taken or not in kebab case", i.Name)
		}
		seen[i.Name] = true
		if i.Source == "" || !strings.HasSuffix(i.About, ".") {
			t.Errorf("%s: source %q, about %q", i.Name, i.Source, i.About)
		}
		fmt.Fprintf(&b, "%-28s %-6s %s\n", i.Name, i.Level, strings.Join(i.Needs, " "))
	}
	golden := filepath.Join("testdata", "checks.txt")
	if *update {
		if err := os.WriteFile(golden, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), b.String()); diff != "" {
		t.Errorf("run with -update if this is meant (-want +got):\n%s", diff)
	}
}

// sent runs some checks and returns every plaintext and ciphertext length that
// the plugin was sent, in no order.
func sent(t *testing.T, seed uint64) []string {
	var mu sync.Mutex
	var all []string
	w := newWorld(t)
	w.wrap = func(p inner) inner {
		return around{KeyManagementServiceServer: p, encrypt: func(ctx context.Context, r *v2.EncryptRequest) (*v2.EncryptResponse, error) {
			mu.Lock()
			all = append(all, string(r.Plaintext))
			mu.Unlock()
			return p.Encrypt(ctx, r)
		}}
	}
	if err := w.start(); err != nil {
		t.Fatal(err)
	}
	o := conformance.Options{Seed: seed, Quick: true, Run: regexp.MustCompile("^(round-trip|different-|ciphertext-|errors-)")}
	if _, err := conformance.Check(t.Context(), "unix://"+w.socket, o); err != nil {
		t.Fatal(err)
	}
	slices.Sort(all)
	return all
}

func TestTheSeedDecidesWhatIsSent(t *testing.T) {
	one, again, two := sent(t, 1), sent(t, 1), sent(t, 2)
	if diff := cmp.Diff(one, again); diff != "" {
		t.Errorf("the same seed sent something else (-first +second):\n%s", diff)
	}
	if cmp.Equal(one, two) {
		t.Error("another seed sent the same")
	}
}

func TestOptionsThatCannotBeAreErrors(t *testing.T) {
	w := newWorld(t)
	if err := w.start(); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		endpoint string
		o        conformance.Options
		want     string
	}{
		"nobody listens":      {"unix:///nowhere/kms.sock", conformance.Options{}, "is the plugin running"},
		"no unix socket":      {"tcp://127.0.0.1:1", conformance.Options{}, "unix:///PATH"},
		"no check's name":     {"unix://" + w.socket, conformance.Options{Run: regexp.MustCompile("^nothing$")}, "no check's name"},
		"a time that is past": {"unix://" + w.socket, conformance.Options{Within: -1}, "more than 0"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := conformance.Check(t.Context(), test.endpoint, test.o)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want one about %q", err, test.want)
			}
		})
	}
}

func TestAHookThatFailsIsAnErrorOfTheRunAndNoVerdictOnThePlugin(t *testing.T) {
	w := newWorld(t)
	if err := w.start(); err != nil {
		t.Fatal(err)
	}
	o := quick(w.hooks())
	o.Run = regexp.MustCompile("^rotation-|^disabled-|^outage-")
	broken := func(context.Context) (string, error) { return "no such key\n", errors.New("exit status 1") }
	o.Hooks.Rotate, o.Hooks.DisableKey, o.Hooks.KMSDown = broken, broken, broken
	report, err := conformance.Check(t.Context(), "unix://"+w.socket, o)
	if err == nil || !strings.Contains(err.Error(), "hook rotate: exit status 1: no such key") {
		t.Errorf("error %v, want one about the hook", err)
	}
	if n := report.Count(conformance.Skip); n == 0 || n != len(report.Results) {
		t.Errorf("%d of %d checks were skipped, want all", n, len(report.Results))
		failures(t, report)
	}
}

func TestARunThatIsEndedSaysWhatItSaw(t *testing.T) {
	w := newWorld(t)
	if err := w.start(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	o := quick(conformance.Hooks{})
	var begun []string
	o.Begin = func(i conformance.Info) { begun = append(begun, i.Name) }
	o.Progress = func(r conformance.Result) {
		if r.Name == "status-healthz" {
			cancel()
		}
	}
	report, err := conformance.Check(ctx, "unix://"+w.socket, o)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want that the context ended", err)
	}
	want := []string{"status-answers", "status-version", "status-version-v2", "status-healthz"}
	if diff := cmp.Diff(want, begun); diff != "" || len(report.Results) != len(want) || len(report.Failures()) > 0 {
		t.Errorf("begun (-want +got):\n%s%d results", diff, len(report.Results))
	}
}

func TestAPluginThatDoesNothingFailsTheBasicsAndNothingElse(t *testing.T) {
	w := newWorld(t)
	w.kms.down = true
	if err := w.start(); err != nil {
		t.Fatal(err)
	}
	report, err := conformance.Check(t.Context(), "unix://"+w.socket, quick(w.hooks()))
	if err != nil {
		t.Fatal(err)
	}
	wantOnly(t, report, "status-answers", "round-trip")
}

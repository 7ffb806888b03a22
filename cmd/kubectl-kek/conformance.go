package main

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"k8s.io/klog/v2"

	"github.com/kube-kek/kube-kek/cmd/kubectl-kek/internal/report"
	"github.com/kube-kek/kube-kek/plugin/conformance"
)

type conformanceFlags struct {
	endpoint string
	run      string
	level    string
	list     bool
	file     string
	out      *output
	hooks    hookFlags
	options  conformance.Options
}

func newConformance() *cobra.Command {
	f := conformanceFlags{out: format{"table", "json", "junit", "markdown"}.flag()}
	c := &cobra.Command{
		Use:   "conformance --endpoint unix:///PATH",
		Short: "Hold any KMS v2 plugin to what Kubernetes demands of it",
		Long: `Checks a running KMS v2 plugin, kube-kek or any other, through its socket alone: it
calls it as kube-apiserver does, and as it never should. Each check has a level:

  MUST    KEP-3299, the API or kube-apiserver's code demands it
  SHOULD  the documentation asks for it, or a breach hurts a control plane
  ADVICE  ours, from what users of plugins suffered

It must run on the plugin's machine, as a user that the plugin lets in. It sends
thousands of calls, and each may be a paid one of the plugin's KMS: --quick sends a
twentieth of them. Nothing that the plugin keeps is changed.

Stories are checks for which the world around the plugin must change: its key
rotates, its KMS goes away, it is killed. They run where the --…-cmd flags that they
need are given; --list shows which those are. The commands change what they are
told to, so run stories on a plugin that no cluster needs.

What a check sends derives from --seed, which each report names: the same seed sends
the same again.

Exit codes: 0 all that ran passed (advice never fails), 1 a MUST failed, 2 the flags
are wrong, the plugin cannot be reached or the run was ended early, 3 no MUST failed
but a SHOULD did.`,
		Example: `  kubectl kek conformance --endpoint unix:///run/kmsplugin/socket.sock
  kubectl kek conformance --endpoint unix:///run/kms.sock --level must -o junit --output-file kms.xml
  kubectl kek conformance --endpoint unix:///run/kms.sock --within 10m \
    --rotate-cmd 'vault write -f transit/keys/k8s/rotate' --restart-cmd 'systemctl restart my-kms'
  kubectl kek conformance --list --run rotation`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return f.do(c) },
	}
	fs := c.Flags()
	fs.StringVar(&f.endpoint, "endpoint", "", endpointUsage)
	fs.StringVar(&f.run, "run", "", "only checks whose name matches `REGEXP`")
	fs.StringVar(&f.level, "level", "advice", "the least `LEVEL` to check: must, should (and must) or advice (all)")
	fs.BoolVar(&f.list, "list", false, "list the checks, with their sources and what they need, and run none")
	fs.Uint64Var(&f.options.Seed, "seed", 0, "`NUMBER` that what is sent derives from (default: another one each time)")
	fs.DurationVar(&f.options.Within, "within", conformance.DefaultWithin, "how long the plugin may take to see a rotation, a disabled key or the end of an outage")
	fs.DurationVar(&f.options.Outage, "outage", conformance.DefaultOutage, "how long the KMS is away in an outage's story")
	fs.Uint32Var(&f.options.CallerUID, "caller-uid", conformance.DefaultCallerUID, "`UID` of a user that the plugin must refuse; tried as root only")
	fs.BoolVar(&f.options.Quick, "quick", false, "send a twentieth of the load")
	fs.StringVar(&f.file, "output-file", "", "write the report to `FILE` in the format of -o, and the table to the standard output")
	f.out.register(c)
	f.hooks.register(fs)
	return c
}

func (f *conformanceFlags) do(c *cobra.Command) error {
	chosen, err := f.choose()
	if err != nil {
		return err
	}
	if f.list {
		return f.writeList(c.OutOrStdout(), chosen)
	}
	if f.endpoint == "" {
		return errors.New("--endpoint is missing: unix:///PATH of the plugin's socket")
	}
	if _, err := reach(f.endpoint); err != nil {
		return err
	}
	file, err := f.open()
	if err != nil {
		return err
	}
	if !c.Flags().Changed("seed") {
		f.options.Seed = uint64(rand.Uint32())
	}
	f.options.Run = exactly(chosen)
	f.options.Hooks = f.hooks.hooks()

	klog.SetLogger(logr.Discard()) // kube-apiserver's own code logs what the report says

	line, n := newProgress(c.ErrOrStderr()), 0
	f.options.Begin = func(i conformance.Info) {
		n++
		line.say(n, len(chosen), i.Name)
	}
	r, err := conformance.Check(c.Context(), f.endpoint, f.options)
	line.clear()
	if err != nil && len(r.Results) == 0 {
		return err
	}
	f.hooks.nameFlags(r)
	if err := f.write(c.OutOrStdout(), file, r); err != nil {
		return fmt.Errorf("writing the report: %w", err)
	}
	if err != nil {
		return err
	}
	return verdict(r)
}

// verdict is the exit code of a report, nil for exitOK.
func verdict(r conformance.Report) error {
	switch {
	case r.Failed(conformance.Must):
		return exit{code: exitFailed}
	case r.Failed(conformance.Should):
		return exit{code: exitShould}
	}
	return nil
}

// choose returns the checks that --run and --level leave.
func (f *conformanceFlags) choose() ([]conformance.Info, error) {
	levels := map[string][]conformance.Level{
		"must":   {conformance.Must},
		"should": {conformance.Must, conformance.Should},
		"advice": {conformance.Must, conformance.Should, conformance.Advice},
	}[strings.ToLower(f.level)]
	if levels == nil {
		return nil, fmt.Errorf("--level must be must, should or advice, not %q", f.level)
	}
	run, err := regexp.Compile(f.run)
	if err != nil {
		return nil, fmt.Errorf("--run: %w", err)
	}
	var chosen []conformance.Info
	for _, i := range conformance.List() {
		if slices.Contains(levels, i.Level) && run.MatchString(i.Name) {
			chosen = append(chosen, i)
		}
	}
	if len(chosen) == 0 {
		return nil, fmt.Errorf("no check of --level %s has a name that matches --run %q; see --list", f.level, f.run)
	}
	return chosen, nil
}

// exactly matches the names of these checks and no other.
func exactly(checks []conformance.Info) *regexp.Regexp {
	var names []string
	for _, i := range checks {
		names = append(names, regexp.QuoteMeta(i.Name))
	}
	return regexp.MustCompile("^(" + strings.Join(names, "|") + ")$")
}

// open makes --output-file before minutes of checks, nil if there is none.
func (f *conformanceFlags) open() (io.WriteCloser, error) {
	if f.file == "" {
		return nil, nil
	}
	file, err := os.Create(f.file)
	if err != nil {
		return nil, fmt.Errorf("--output-file: %w", err)
	}
	return file, nil
}

// write writes the report to the file, and the table to stdout; the report to
// stdout where there is no file.
func (f *conformanceFlags) write(stdout io.Writer, file io.WriteCloser, r conformance.Report) error {
	if file == nil {
		return f.writeAs(f.out.value, stdout, r)
	}
	if err := errors.Join(f.writeAs(f.out.value, file, r), file.Close()); err != nil {
		return err
	}
	return f.writeAs("table", stdout, r)
}

func (f *conformanceFlags) writeAs(format string, w io.Writer, r conformance.Report) error {
	switch format {
	case "json":
		return report.JSON(w, r)
	case "junit":
		return report.JUnit(w, r)
	case "markdown":
		return report.Markdown(w, r)
	}
	width, terminal := widthOf(w)
	if !terminal {
		width = 0 // whoever reads a file or a CI's log can scroll
	}
	return report.Table(w, r, report.Style{Width: width, Color: terminal && os.Getenv("NO_COLOR") == ""})
}

func (f *conformanceFlags) writeList(w io.Writer, checks []conformance.Info) error {
	switch f.out.value {
	case "json":
		return report.ListJSON(w, checks)
	case "table":
		return report.List(w, checks, flagOf)
	}
	return errors.New("--list is written as -o table or json")
}

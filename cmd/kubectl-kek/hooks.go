package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/pflag"

	"github.com/kube-kek/kube-kek/plugin/conformance"
)

// shown is how many bytes of a hook's output are read, the last ones.
const shown = 1000

// shell makes a hook of a command for /bin/sh, nil of "". Its output is what it
// wrote to stdout, and to stderr where it failed. What it leaves running in the
// background stays. The command itself is in no error: it may hold a credential.
func shell(command string, timeout time.Duration) conformance.Hook {
	if command == "" {
		return nil
	}
	return func(ctx context.Context) (string, error) {
		ctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		out, said, err := sh(ctx, command)
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			err = fmt.Errorf("it was not done in %s", timeout)
		}
		if err != nil {
			return said, err
		}
		return out, nil
	}
}

// sh runs a command in a process group of its own, which is killed when ctx ends.
// Its output goes to files, not to pipes: a daemon that it starts may keep them
// open, and nobody waits for that.
func sh(ctx context.Context, command string) (stdout, stderr string, err error) {
	dir, err := os.MkdirTemp("", "kubectl-kek-")
	if err != nil {
		return "", "", err
	}
	defer os.RemoveAll(dir)
	out, err := os.Create(dir + "/stdout")
	if err != nil {
		return "", "", err
	}
	defer out.Close()
	said, err := os.Create(dir + "/stderr")
	if err != nil {
		return "", "", err
	}
	defer said.Close()

	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", command)
	cmd.Stdout, cmd.Stderr = out, said
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	err = cmd.Run()
	return tail(out.Name()), tail(said.Name()), err
}

func tail(path string) string {
	content, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(content[max(0, len(content)-shown):]))
}

// hookFlags are the commands that stories need.
type hookFlags struct {
	commands map[string]*string // by the hook's name in conformance.Info.Needs
	timeout  time.Duration
}

// hookUsage is the one table of them.
func hookUsage() []struct{ name, usage string } {
	return []struct{ name, usage string }{
		{"rotate", "makes a new version of the KEK current"},
		{"kms-down", "takes the KMS away from the plugin"},
		{"kms-up", "gives it back"},
		{"restart", "ends the plugin if it runs, and starts it at the same endpoint"},
		{"kill", "ends the plugin with SIGKILL"},
		{"disable-key", "disables the KEK"},
		{"enable-key", "enables it again"},
		{"kms-calls", "prints how many calls the KMS has had so far"},
	}
}

func (h *hookFlags) register(f *pflag.FlagSet) {
	h.commands = map[string]*string{}
	for _, u := range hookUsage() {
		h.commands[u.name] = f.String(flagOf(u.name), "", "`COMMAND` for /bin/sh that "+u.usage)
	}
	registerTimeout(f, &h.timeout)
}

func registerTimeout(f *pflag.FlagSet, d *time.Duration) {
	f.DurationVar(d, "hook-timeout", time.Minute, "how long a COMMAND may take before it is killed")
}

// flagOf names the flag of a hook.
func flagOf(hook string) string { return hook + "-cmd" }

func (h *hookFlags) hooks() conformance.Hooks {
	hook := func(name string) conformance.Hook { return shell(*h.commands[name], h.timeout) }
	return conformance.Hooks{
		Rotate: hook("rotate"), KMSDown: hook("kms-down"), KMSUp: hook("kms-up"), Restart: hook("restart"),
		Kill: hook("kill"), DisableKey: hook("disable-key"), EnableKey: hook("enable-key"), KMSCalls: hook("kms-calls"),
	}
}

// nameFlags has the results that were skipped for want of a hook say which flags
// give it.
func (h *hookFlags) nameFlags(r conformance.Report) {
	missing := map[string][]string{}
	for _, i := range conformance.List() {
		for _, hook := range i.Needs {
			if command := h.commands[hook]; command == nil || *command == "" {
				missing[i.Name] = append(missing[i.Name], "--"+flagOf(hook))
			}
		}
	}
	for i, res := range r.Results {
		if flags := missing[res.Name]; res.Verdict == conformance.Skip && len(flags) > 0 {
			r.Results[i].Seen = "needs " + strings.Join(flags, ", ")
		}
	}
}

package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/kube-kek/kube-kek/kek/awskms/awskmstest"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"kube-kek": main})
}

// TestScripts runs testdata/script, which reads as a manual of the command. A
// script has, beside testscript's own commands:
//
//	await FILE|SOCKET.sock    waits until the file is there, or a plugin answers
//	signal TERM|HUP|KILL      signals "kube-kek serve" in the background
//	kms VERB                  changes the stand-in for AWS KMS
//	take ADDRESS|PATH         listens there until the script ends
//	expand FILE               replaces $VARIABLE in the file
//	exits CODE PROGRAM ARG…   runs a program, which must end with that code
//	get URL                   prints the status and body of an HTTP answer
//
// and the variables UID, HEALTH (a free loopback address), KEY (an ARN of the
// stand-in, which is also alias/k8s) and the SDK's own that lead to it.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup:               setup,
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"await":  await,
			"signal": sendSignal,
			"kms":    changeKMS,
			"take":   take,
			"expand": expand,
			"exits":  exits,
			"get":    get,
		},
	})
}

func setup(env *testscript.Env) error {
	// testscript makes directories by the umask of whoever runs it.
	if err := os.Chmod(env.WorkDir, 0o700); err != nil {
		return err
	}
	env.Setenv("GORACE", "atexit_sleep_ms=0") // else each process of a race build lingers for a second
	env.Setenv("UID", strconv.Itoa(os.Getuid()))
	address, err := freeAddress()
	if err != nil {
		return err
	}
	env.Setenv("HEALTH", address)

	kms := awskmstest.New(awskmstest.Config{})
	srv := kms.Start()
	env.Defer(srv.Close)
	key := kms.CreateKey()
	kms.SetAlias("alias/k8s", key)
	p := principal("*")
	kms.AddPrincipal(p)
	env.Setenv("KEY", key)
	for _, kv := range kms.Env(srv.URL, p) {
		name, value, _ := strings.Cut(kv, "=")
		env.Setenv(name, value)
	}
	env.Values["kms"], env.Values["key"] = kms, key
	return nil
}

func principal(allow ...string) awskmstest.Principal {
	return awskmstest.Principal{
		AccessKeyID: "AKIASCRIPT", SecretAccessKey: "not-a-secret",
		ARN: "arn:aws:iam::111122223333:user/script", Allow: allow,
	}
}

func freeAddress() (string, error) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer lis.Close()
	return lis.Addr().String(), nil
}

// await polls: a socket with the daemon's own probe, so that a script goes on
// when kube-apiserver could.
func await(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: await FILE|SOCKET.sock")
	}
	path := ts.MkAbs(args[0])
	var err error
	for range 400 {
		if filepath.Ext(path) == ".sock" {
			err = ts.Exec("kube-kek", "probe", "--socket", path)
		} else {
			_, err = os.Stat(path)
		}
		if err == nil {
			return
		}
		time.Sleep(25 * time.Millisecond)
	}
	ts.Fatalf("waited in vain: %v", err)
}

func sendSignal(ts *testscript.TestScript, neg bool, args []string) {
	signals := map[string]os.Signal{"TERM": syscall.SIGTERM, "HUP": syscall.SIGHUP, "KILL": syscall.SIGKILL}
	if neg || len(args) != 1 || signals[args[0]] == nil {
		ts.Fatalf("usage: signal TERM|HUP|KILL")
	}
	for _, cmd := range ts.BackgroundCmds() {
		if slices.Contains(cmd.Args, "serve") {
			ts.Check(cmd.Process.Signal(signals[args[0]]))
		}
	}
}

func changeKMS(ts *testscript.TestScript, neg bool, args []string) {
	kms, key := ts.Value("kms").(*awskmstest.Server), ts.Value("key").(string)
	switch verb := strings.Join(args, " "); {
	case neg || len(args) == 0:
		ts.Fatalf("usage: kms allow ACTION…|schedule-deletion|enable|away|slow|asked|back")
	case args[0] == "allow":
		kms.AddPrincipal(principal(args[1:]...))
	case verb == "enable":
		kms.Enable(key)
	case verb == "schedule-deletion":
		kms.ScheduleDeletion(key)
	case verb == "away":
		kms.SetFault(awskmstest.Fault{Drop: true})
	case verb == "slow": // each Decrypt takes half a second
		kms.ResetCalls()
		kms.SetFault(awskmstest.Fault{Actions: []string{"Decrypt"}, Latency: 500 * time.Millisecond})
	case verb == "asked": // waits until a Decrypt has come
		for kms.Calls("Decrypt") == 0 {
			time.Sleep(5 * time.Millisecond)
		}
	case verb == "back":
		kms.SetFault()
	default:
		ts.Fatalf("unknown: kms %s", verb)
	}
}

func take(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: take ADDRESS|PATH")
	}
	network := "tcp"
	if filepath.IsAbs(args[0]) {
		network = "unix"
	}
	lis, err := net.Listen(network, args[0])
	ts.Check(err)
	ts.Defer(func() { lis.Close() })
}

func expand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: expand FILE")
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(os.Expand(ts.ReadFile(args[0]), ts.Getenv)), 0o600))
}

func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE PROGRAM ARG…")
	}
	code := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			ts.Fatalf("%s: %v", args[1], err)
		}
		code = exit.ExitCode()
	}
	if strconv.Itoa(code) != args[0] {
		ts.Fatalf("%v ended with code %d, not %s", args[1:], code, args[0])
	}
}

func get(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: get URL")
	}
	resp, err := http.Get(args[0])
	ts.Check(err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	ts.Check(err)
	fmt.Fprintf(ts.Stdout(), "%s\n%s", resp.Status, body)
}

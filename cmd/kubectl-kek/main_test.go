package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"google.golang.org/grpc"
	v2 "k8s.io/kms/apis/v2"

	"github.com/kube-kek/kube-kek/plugin/bench"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"kubectl-kek": main,
		"bare-kms":    bareKMS,
	})
}

// bareKMS serves the bare service of bench, a plugin that encrypts nothing, on
// the socket that it is given.
func bareKMS() {
	lis, err := net.Listen("unix", os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	srv := grpc.NewServer()
	v2.RegisterKeyManagementServiceServer(srv, bench.NewBare(bench.Shape{KeyID: 20, Ciphertext: 61}))
	srv.Serve(lis)
}

// The scripts are the manual of the command, run against the daemon.
func TestScripts(t *testing.T) {
	bin := t.TempDir()
	build := exec.Command("go", "build", "-o", bin, "github.com/kube-kek/kube-kek/cmd/kube-kek")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the daemon: %v\n%s", err, out)
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			e.Setenv("PATH", bin+string(filepath.ListSeparator)+e.Getenv("PATH"))
			e.Setenv("UID", strconv.Itoa(os.Getuid()))
			e.Defer(func() { // what a script's restart command has left in the background
				pid, _ := os.ReadFile(filepath.Join(e.WorkDir, "pid"))
				kill(string(pid))
			})
			return os.Mkdir(filepath.Join(e.WorkDir, "run"), 0o700)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits":   exits,
			"json":    isJSON,
			"serving": serving,
		},
	})
}

// exits CODE COMMAND ARGS... demands an exit code.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND ARGS...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		x, ok := err.(*exec.ExitError)
		if !ok {
			ts.Fatalf("%v", err)
		}
		got = x.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit code %d, not %d", got, want)
	}
}

// json FILE FIELDS... demands a JSON object with these fields.
func isJSON(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: json FILE FIELDS...")
	}
	var doc map[string]json.RawMessage
	ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[0])), &doc))
	for _, field := range args[1:] {
		if v, ok := doc[field]; !ok || string(v) == "null" {
			ts.Fatalf("%s has no %s", args[0], field)
		}
	}
}

// kill ends a process, if there is one.
func kill(pid string) {
	if pid, err := strconv.Atoi(strings.TrimSpace(pid)); err == nil && pid > 1 {
		syscall.Kill(pid, syscall.SIGKILL)
	}
}

// serving SOCKET waits until a plugin's Status is good.
func serving(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: serving SOCKET")
	}
	endpoint := "unix:" + args[0]
	if args[0][0] != '@' {
		endpoint = "unix://" + ts.MkAbs(args[0])
	}
	conn, err := bench.Dial(endpoint)
	ts.Check(err)
	defer conn.Close()
	kms := v2.NewKeyManagementServiceClient(conn)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for {
		if _, err = kms.Status(ctx, &v2.StatusRequest{}); err == nil {
			return
		}
		if ctx.Err() != nil {
			ts.Fatalf("nobody serves %s: %v", args[0], err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

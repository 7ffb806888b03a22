package e2e

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kube-kek/kube-kek/e2e/internal/lab"
)

// An outage is survived; a KMS that says no is obeyed. Disabling the key is how
// an operator takes a stolen control plane its Secrets, so it must work within
// seconds and without anybody's help on the node.
func TestADisabledKeyOpensNothingWithinTwoRenewalsAndAllIsWellOnceItIsEnabled(t *testing.T) {
	t.Parallel()
	const (
		secrets = 20
		renew   = 5 * time.Second
		// Two renewals, each up to half as late again by jitter, and the time of
		// the calls on a busy machine.
		obeyed = 2*renew + renew + 5*time.Second
	)
	l := lab.New(t)
	aws := l.StartAWS()
	plugin := l.StartPlugin(lab.Config{KEK: aws.KEK(), Renew: renew.String()})
	apiserver := l.StartAPIServer("apiserver", plugin)
	apiserver.Create("secret", secrets)
	record := l.Etcd.Secrets()["default/secret-0"]
	if err := plugin.Decrypt(record); err != nil {
		t.Fatalf("before the key is disabled: %v", err)
	}
	pid := plugin.PID()

	aws.Disable()
	took := l.Eventually("the plugin to open no seed", obeyed, func() error {
		return wantCode("Decrypt", plugin.Decrypt(record), codes.FailedPrecondition)
	})
	_, err := plugin.Status()
	if err := wantCode("Status", err, codes.FailedPrecondition); err != nil {
		t.Error(err)
	}
	t.Logf("key disabled: no seed is opened %s later; Status: %v", took.Round(time.Second/10), err)

	apiserver.Kill()
	apiserver.Start()
	l.Eventually("a restarted kube-apiserver to say that it has no KMS", time.Minute, func() error {
		if err := apiserver.Ready(); err == nil {
			return errors.New("it is ready")
		} else if !lab.FailsOnKMS(err) {
			return err
		}
		return nil
	})
	if err := apiserver.TryReadAll(secrets); err == nil {
		t.Error("a kube-apiserver that was started with the key disabled reads Secrets")
	} else {
		t.Logf("a restarted kube-apiserver reads nothing: %v", err)
	}

	aws.Enable()
	start := time.Now()
	l.Eventually("a good Status", obeyed+renew, func() error { _, err := plugin.Status(); return err })
	if err := plugin.Decrypt(record); err != nil {
		t.Errorf("after the key is enabled: %v", err)
	}
	t.Logf("key enabled: Status is good and seeds are opened %s later", since(start))
	apiserver.WaitReady()
	apiserver.ReadAll(secrets)
	apiserver.Create("more", secrets)
	apiserver.ReadAll(2 * secrets)
	if plugin.PID() != pid || !plugin.Running() {
		t.Error("the plugin was restarted")
	}
	t.Logf("kube-apiserver reads and writes %s after the key was enabled; nothing was restarted", since(start))
}

func wantCode(what string, err error, want codes.Code) error {
	if got := status.Code(err); got != want {
		return fmt.Errorf("%s: code %s, want %s: %v", what, got, want, err)
	}
	return nil
}

package conformance_test

import (
	"context"
	"net"
	"os"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	kms2 "k8s.io/kms/apis/v2"

	"github.com/kube-kek/kube-kek/plugin/conformance"
)

// roles are what this test binary can be.
var roles = map[string]func(socket string) error{
	"toy":      func(socket string) error { return serveToy(socket, func(*world) {}) },
	"kube-kek": func(socket string) error { return newKubeKEK(socket).start() },
	"leaks memory": func(socket string) error {
		var kept [][]byte
		var mu sync.Mutex
		return serveToy(socket, func(w *world) {
			w.wrap = onDecrypt(func(ctx context.Context, p inner, r *kms2.DecryptRequest) (*kms2.DecryptResponse, error) {
				mu.Lock()
				kept = append(kept, randomBytes(512<<10))
				mu.Unlock()
				return p.Decrypt(ctx, r)
			})
		})
	},
	"leaks files": func(socket string) error {
		var kept []*os.File
		return serveToy(socket, func(w *world) {
			w.listen = func(socket string) (net.Listener, error) {
				lis, err := listen(socket)
				return onAccept{lis, func(net.Conn) {
					if f, err := os.Open(os.DevNull); err == nil {
						kept = append(kept, f)
					}
				}}, err
			}
		})
	},
}

func serveToy(socket string, edit func(*world)) error {
	w := &world{socket: socket, kms: &kms{}, wrap: same, listen: listen, refuseStart: func() bool { return false }}
	w.kms.rotate()
	edit(w)
	return w.start()
}

func TestACorrectPluginPassesEveryCheckAndStory(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if err := w.start(); err != nil {
		t.Fatal(err)
	}
	report, err := conformance.Check(t.Context(), "unix://"+w.socket, quick(w.hooks()))
	if err != nil {
		t.Fatal(err)
	}
	logAll(t, report)
	if failed := report.Failures(); len(failed) > 0 {
		t.Errorf("%d checks failed, the first is %s", len(failed), failed[0].Name)
	}
	if diff := cmp.Diff(ofProcesses, skipped(report)); diff != "" {
		t.Errorf("skipped checks (-want +got):\n%s", diff)
	}
}

func TestACorrectPluginInAProcessOfItsOwnPassesWithoutStories(t *testing.T) {
	t.Parallel()
	conformance.Run(t, child(t, "toy"), conformance.Options{Seed: 2})
}

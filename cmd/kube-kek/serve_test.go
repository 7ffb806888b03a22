package main

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kube-kek/kube-kek/cmd/kube-kek/internal/config"
	"github.com/kube-kek/kube-kek/plugin"
)

func TestATakenHealthAddressIsServedOnceItIsFree(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := taken.Addr().String()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		log := &watchedLog{shows: "serving metrics", shown: make(chan struct{})}
		done := make(chan struct{})
		srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "well") })}
		go func() {
			defer close(done)
			serveHealth(ctx, address, srv, slog.New(slog.NewTextHandler(log, nil)))
		}()
		time.Sleep(3*healthRetry + time.Second) // tried four times
		taken.Close()
		<-log.shown

		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		resp, err := client.Get("http://" + address)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || string(body) != "well" {
			t.Errorf("got %q, %v", body, err)
		}
		cancel()
		<-done
		if n := strings.Count(log.String(), "level=ERROR"); n != 1 {
			t.Errorf("%d errors were logged for one that lasted:\n%s", n, log)
		}
	})
}

// watchedLog closes shown when a line shows a text.
type watchedLog struct {
	bytes.Buffer
	shows string
	shown chan struct{}
}

func (l *watchedLog) Write(line []byte) (int, error) {
	if bytes.Contains(line, []byte(l.shows)) {
		close(l.shown)
	}
	return l.Buffer.Write(line)
}

func TestAnAuditLogThatIsNotRequiredStopsNoOne(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	path := t.TempDir() + "/no/such/audit.log"
	if _, err := openAudit(config.Audit{Path: path, Required: true}, log); err == nil {
		t.Error("required: no error")
	}
	a, err := openAudit(config.Audit{Path: path}, log)
	if err != nil {
		t.Fatalf("not required: %v", err)
	}
	if err := a.Write(plugin.AuditEntry{}); err == nil {
		t.Error("a line was written to nowhere")
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := a.Write(plugin.AuditEntry{}); err != nil {
		t.Errorf("the directory is there now: %v", err)
	}
}

func TestOnlyUnchangedConstantsOfTheProgramAreGivenBack(t *testing.T) {
	const smaps = `00400000-00d4e000 r-xp 00000000 fe:00 9978631                            /usr/bin/kube-kek
Rss:                7604 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me lo
00d4e000-017d2000 r--p 0094e000 fe:00 9978631                            /usr/bin/kube-kek
Anonymous:             0 kB
017d2000-017d3000 r--p 0094e000 fe:00 9978631                            /usr/bin/kube-kek
Anonymous:             4 kB
017d3000-0184c000 rw-p 013d2000 fe:00 9978631                            /usr/bin/kube-kek
Anonymous:             0 kB
0184c000-03895000 rw-p 00000000 00:00 0
Anonymous:             0 kB
7fab91c62000-7fab91c64000 r-xp 00000000 fe:00 12                         /usr/lib/libc.so.6
Anonymous:             0 kB
7fab91c64000-7fab91c66000 r-xp 00000000 00:00 0                          [vdso]
Anonymous:             0 kB
`
	want := []mapping{{0x400000, 0xd4e000}, {0xd4e000, 0x17d2000}}
	if diff := cmp.Diff(want, imageMappings(smaps, "/usr/bin/kube-kek"), cmp.AllowUnexported(mapping{})); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// The test binary differs from the daemon in how it is linked, and goes on all
// the same.
func TestAProgramGoesOnAfterItsImageWasGivenBack(t *testing.T) {
	if err := releaseImage(); err != nil {
		t.Error(err)
	}
}

package plugin_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/kube-kek/kube-kek/kek"
	"github.com/kube-kek/kube-kek/kek/localkek"
	"github.com/kube-kek/kube-kek/plugin"
)

// snapshot is a ring that says what it is told to.
type snapshot localkek.Snapshot

func (s *snapshot) Snapshot() localkek.Snapshot { return localkek.Snapshot(*s) }

// outage is a ring in the middle of one, after a rotation, with all that can be said.
func outage() *snapshot {
	day := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	return &snapshot{
		KeyID: "fake:key@2", Rotations: 1, LocalKEKs: 5, Known: 7,
		Versions: []localkek.VersionStatus{
			{Scheme: "fake", Key: kek.KeyRef{ID: "key", Version: "2"}, KeyID: "fake:key@2", Current: true,
				FirstSeen: day, LastSuccess: day.Add(time.Hour), LeaseLeft: 11 * time.Hour, LocalKEKs: 2,
				LastErr: &kek.Error{Op: kek.OpUnwrap, Kind: kek.Unavailable}},
			{Scheme: "fake", Key: kek.KeyRef{ID: "key", Version: "1"}, KeyID: "fake:key@1",
				FirstSeen: day.Add(-time.Hour), LastSuccess: day, LeaseLeft: 10 * time.Hour, LocalKEKs: 3, Refusals: 1},
		},
		Homes: []localkek.HomeStatus{
			{Scheme: "fake", ID: "key", LastTry: day.Add(time.Hour),
				LastErr: &kek.Error{Op: kek.OpCurrent, Kind: kek.Unavailable, Err: http.ErrHandlerTimeout},
				Facts: kek.Facts{Key: kek.KeyRef{ID: "key", Version: "2"}, State: kek.StatePendingDeletion,
					Created: day.AddDate(-1, 0, 0), VersionCreated: day, DeletionDate: day.AddDate(0, 0, 7),
					Rotation: "every 90 days", Notes: []string{"The key is pending deletion.\n[+]forged ok"}}},
			{Scheme: "other", ID: "old"},
			{Scheme: "other", ID: "alias", Facts: kek.Facts{Key: kek.KeyRef{ID: "old"}, State: kek.StateEnabled}},
			{Scheme: "other", ID: "old", Facts: kek.Facts{Key: kek.KeyRef{ID: "old"}, State: kek.StateEnabled}},
		},
	}
}

func get(t *testing.T, server *httptest.Server, path string) (int, string) {
	t.Helper()
	resp, err := server.Client().Get(server.URL + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func TestHealthPages(t *testing.T) {
	ring := outage()
	reg := prometheus.NewRegistry()
	plugin.NewMetrics(reg, plugin.Build{}).Watch(ring)
	server := httptest.NewServer(plugin.NewHealthServer(ring, reg).Handler)
	defer server.Close()

	code, body := get(t, server, "/readyz?verbose")
	if diff := diffGolden(t, "testdata/readyz.golden", body); diff != "" || code != http.StatusOK {
		t.Errorf("/readyz?verbose: %d (-want +got):\n%s", code, diff)
	}
	for _, path := range []string{"/livez", "/readyz"} {
		if code, body := get(t, server, path); code != http.StatusOK || body != "ok" {
			t.Errorf("%s: %d %q", path, code, body)
		}
	}
	if code, body := get(t, server, "/metrics"); code != http.StatusOK || !strings.Contains(body, "\nkube_kek_ready 1\n") {
		t.Errorf("/metrics: %d\n%s", code, body)
	}
	if code, _ := get(t, server, "/debug/pprof/"); code != http.StatusNotFound {
		t.Errorf("/debug/pprof/: %d", code)
	}

	ring.Err, ring.KeyID = kek.KeyDisabled, ""
	code, body = get(t, server, "/readyz")
	if code != http.StatusServiceUnavailable || !strings.HasPrefix(body, "[-]key failed: key disabled\n") || !strings.HasSuffix(body, "\nreadyz check failed\n") {
		t.Errorf("/readyz without a key: %d\n%s", code, body)
	}
	if code, _ := get(t, server, "/livez"); code != http.StatusOK {
		t.Errorf("/livez without a key: %d; a restart would cure nothing", code)
	}
}

package plugin

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/kube-kek/kube-kek/kek/localkek"
)

// Snapshotter is what health and metrics need of a [localkek.Ring].
type Snapshotter interface{ Snapshot() localkek.Snapshot }

// NewHealthServer returns an HTTP server for /metrics, /livez and /readyz, with
// the limits that a port without authentication wants. The caller listens, on
// loopback unless told otherwise, and calls its Serve.
//
// /livez is well while the process answers: a restart cures no outage of a KMS.
// /readyz is well (200) if and only if Status is, and is 503 with all that
// /readyz?verbose tells where it is not.
func NewHealthServer(ring Snapshotter, metrics prometheus.Gatherer) *http.Server {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{MaxRequestsInFlight: 8, Timeout: 10 * time.Second}))
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		plainText(w, http.StatusOK)
		io.WriteString(w, "ok")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		s := ring.Snapshot()
		switch {
		case s.Err != nil:
			plainText(w, http.StatusServiceUnavailable)
			writeReadyz(w, s)
		case r.URL.Query().Has("verbose"):
			plainText(w, http.StatusOK)
			writeReadyz(w, s)
		default:
			plainText(w, http.StatusOK)
			io.WriteString(w, "ok")
		}
	})
	return &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
	}
}

func plainText(w http.ResponseWriter, code int) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(code)
}

// writeReadyz lists the checks as kube-apiserver's /readyz?verbose does. Only
// the first, the key, decides: the others tell of an outage while it is still
// bridged by the lease.
func writeReadyz(w io.Writer, s localkek.Snapshot) {
	check(w, "key", s.Err, "current "+s.KeyID)
	for _, v := range s.Versions {
		check(w, "key-version "+v.KeyID, v.LastErr, versionDetails(v, s.Strict)...)
	}
	for _, h := range s.Homes {
		name, details := homeDetails(h)
		check(w, "home "+name, h.LastErr, details...)
	}
	if s.Err != nil {
		io.WriteString(w, "readyz check failed\n")
		return
	}
	io.WriteString(w, "readyz check passed\n")
}

// check writes one check, with its details on lines of their own.
func check(w io.Writer, name string, err error, details ...string) {
	if err != nil {
		fmt.Fprintf(w, "[-]%s failed: %s\n", oneLine(name), oneLine(err.Error()))
	} else {
		fmt.Fprintf(w, "[+]%s ok\n", oneLine(name))
	}
	for _, d := range details {
		fmt.Fprintf(w, "   %s\n", oneLine(d))
	}
}

func versionDetails(v localkek.VersionStatus, strict bool) []string {
	lease := "lease left " + v.LeaseLeft.Round(time.Second).String()
	if strict {
		lease = "no lease (strict)"
	}
	details := []string{
		fmt.Sprintf("%s, local KEKs %d", lease, v.LocalKEKs),
		"first seen " + when(v.FirstSeen) + ", last success " + when(v.LastSuccess),
	}
	if v.Refusals > 0 {
		details = append(details, fmt.Sprintf("refused %d times running", v.Refusals))
	}
	return details
}

func homeDetails(h localkek.HomeStatus) (name string, details []string) {
	id := h.Facts.Key.ID
	if id == "" {
		id = h.ID
	}
	details = []string{"last asked " + when(h.LastTry)}
	if h.Facts.State != "" {
		details = append(details, "state "+string(h.Facts.State))
	}
	if !h.Facts.DeletionDate.IsZero() {
		details = append(details, "will be deleted at "+when(h.Facts.DeletionDate))
	}
	if h.Facts.Rotation != "" {
		details = append(details, "rotation "+h.Facts.Rotation)
	}
	for _, note := range h.Facts.Notes {
		details = append(details, "note: "+note)
	}
	return h.Scheme + ":" + id, details
}

func when(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return t.UTC().Format(time.RFC3339)
}

// oneLine keeps a home's error text from looking like another check.
func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

package lab

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	kmsv2 "k8s.io/kms/apis/v2"
	"sigs.k8s.io/yaml"

	"github.com/kube-kek/kube-kek/e2e/internal/parts"
)

// Config is the part of the daemon's configuration file that tests set. What is
// left out has the daemon's own defaults.
type Config struct {
	KEK      KEK    `json:"kek"`
	Previous []KEK  `json:"previous,omitempty"`
	Lease    string `json:"lease,omitempty"`
	Renew    string `json:"renew,omitempty"`
	MaxUses  uint64 `json:"maxUses,omitempty"`
}

// KEK is one home of a key, as the configuration file names it.
type KEK struct {
	URI   string            `json:"uri"`
	Epoch int               `json:"epoch,omitempty"`
	AWS   map[string]string `json:"aws,omitempty"`
}

// Plugin is our daemon, as a process with a configuration file.
type Plugin struct {
	Socket string
	KMS    kmsv2.KeyManagementServiceClient // speaks to the socket as kube-apiserver does

	lab    *Lab
	name   string
	health string
	proc   *Process
}

// StartPlugin starts the daemon and waits until its Status is good.
func (l *Lab) StartPlugin(c Config) *Plugin {
	l.Helper()
	p := l.NewPlugin(c)
	p.Start()
	p.WaitServing()
	return p
}

// NewPlugin prepares a daemon that is not started.
func (l *Lab) NewPlugin(c Config) *Plugin {
	l.Helper()
	p := &Plugin{lab: l, name: "kube-kek", health: address(l.freePort()), Socket: filepath.Join(l.Dir, "run", "kube-kek.sock")}
	if err := os.MkdirAll(filepath.Dir(p.Socket), 0o700); err != nil {
		l.Fatalf("%v", err)
	}
	p.Configure(c)
	conn, err := grpc.NewClient("unix://"+p.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		l.Fatalf("%v", err)
	}
	l.Cleanup(func() { conn.Close() })
	p.KMS = kmsv2.NewKeyManagementServiceClient(conn)
	return p
}

// Configure writes the configuration file anew, for the next start.
func (p *Plugin) Configure(c Config) {
	p.lab.Helper()
	file := map[string]any{
		"apiVersion": "kube-kek.io/v1",
		"cluster":    "e2e",
		"socket":     map[string]any{"path": p.Socket, "allowedUIDs": []int{os.Getuid()}},
		"health":     map[string]any{"address": p.health},
		"log":        map[string]any{"format": "text", "level": "debug"},
	}
	content, err := yaml.Marshal(c)
	if err != nil {
		p.lab.Fatalf("%v", err)
	}
	fields := map[string]any{}
	if err := yaml.Unmarshal(content, &fields); err != nil {
		p.lab.Fatalf("%v", err)
	}
	maps.Copy(file, fields)
	if content, err = yaml.Marshal(file); err != nil {
		p.lab.Fatalf("%v", err)
	}
	p.lab.Write("config.yaml", content)
}

// Start starts the process and does not wait.
func (p *Plugin) Start() {
	p.lab.Helper()
	p.proc = p.lab.run(p.name, parts.Daemon, p.lab.pluginEnv, "serve", "--config", filepath.Join(p.lab.Dir, "config.yaml"))
}

// Stop ends the process with SIGTERM, Kill with SIGKILL.
func (p *Plugin) Stop() { p.proc.Stop() }

// Kill ends the process as a crash would, leaving its socket behind.
func (p *Plugin) Kill() { p.proc.Kill() }

// Forget makes the next start that of a new node: the plugin does not know which
// local KEKs it held.
func (p *Plugin) Forget() {
	p.lab.Helper()
	if err := os.Remove(p.Socket + ".known"); err != nil {
		p.lab.Fatalf("%v", err)
	}
}

// PID is that of the process that runs now.
func (p *Plugin) PID() int { return p.proc.PID() }

// Running reports whether the process lives.
func (p *Plugin) Running() bool { return p.proc.Running() }

// Restart stops the daemon, starts it again and waits until its Status is good.
func (p *Plugin) Restart() {
	p.lab.Helper()
	p.Stop()
	p.Start()
	p.WaitServing()
}

// WaitServing waits until Status is good.
func (p *Plugin) WaitServing() {
	p.lab.Helper()
	p.lab.waitFor("a good Status of the plugin", p.proc, 30*time.Second, func() error {
		_, err := p.Status()
		return err
	})
}

// Status asks the socket and returns the key ID, or the error that kube-apiserver
// would get.
func (p *Plugin) Status() (keyID string, err error) {
	ctx, cancel := context.WithTimeout(p.lab.Context(), 3*time.Second)
	defer cancel()
	resp, err := p.KMS.Status(ctx, &kmsv2.StatusRequest{}, grpc.WaitForReady(true))
	if err != nil {
		return "", err
	}
	if resp.Healthz != "ok" || resp.Version != "v2" {
		return "", fmt.Errorf("healthz %q, version %q", resp.Healthz, resp.Version)
	}
	return resp.KeyId, nil
}

// Decrypt sends a record's seed to the plugin, as kube-apiserver does when it
// does not know it. The seed itself is not returned: only whether it was opened.
func (p *Plugin) Decrypt(r Record) error {
	ctx, cancel := context.WithTimeout(p.lab.Context(), 3*time.Second)
	defer cancel()
	resp, err := p.KMS.Decrypt(ctx, &kmsv2.DecryptRequest{
		Uid: "e2e", KeyId: r.KeyID, Ciphertext: r.EncryptedDEKSource, Annotations: r.Annotations,
	})
	if err == nil && len(resp.Plaintext) != 32 {
		return fmt.Errorf("a seed of %d bytes", len(resp.Plaintext))
	}
	return err
}

// Metrics reads /metrics.
func (p *Plugin) Metrics() Metrics {
	p.lab.Helper()
	client := http.Client{Timeout: 5 * time.Second}
	resp, err := client.Get("http://" + p.health + "/metrics")
	if err != nil {
		p.lab.Fatalf("reading the plugin's metrics: %v", err)
	}
	defer resp.Body.Close()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(resp.Body)
	if err != nil {
		p.lab.Fatalf("reading the plugin's metrics: %v", err)
	}
	return Metrics(families)
}

// LeaseLeft is how long the plugin may use the local KEKs of a key ID without a
// word from the KMS.
func (p *Plugin) LeaseLeft(keyID string) time.Duration {
	p.lab.Helper()
	return time.Duration(p.Metrics().Sum("kube_kek_lease_remaining_seconds", "key_id", keyID) * float64(time.Second))
}

// Metrics is what /metrics said.
type Metrics map[string]*dto.MetricFamily

// Sum adds up the counters or gauges of a name whose labels have the values
// given in pairs. It is 0 if there is none.
func (m Metrics) Sum(name string, labels ...string) float64 {
	sum := 0.0
	for _, metric := range m[name].GetMetric() {
		if matches(metric, labels) {
			sum += metric.GetCounter().GetValue() + metric.GetGauge().GetValue()
		}
	}
	return sum
}

func matches(metric *dto.Metric, pairs []string) bool {
	have := map[string]string{}
	for _, l := range metric.GetLabel() {
		have[l.GetName()] = l.GetValue()
	}
	for i := 0; i < len(pairs); i += 2 {
		if have[pairs[i]] != pairs[i+1] {
			return false
		}
	}
	return true
}

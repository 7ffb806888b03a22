package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	v2 "k8s.io/kms/apis/v2"
)

// Options say what to measure.
type Options struct {
	Concurrency []int // how many callers at once, one measurement each
	Requests    int   // calls of each operation at each concurrency
	Seeds       int   // distinct ones, for cold Decrypts and for the storm
	Rounds      int   // turns of plugin and baseline; 5 unless set

	// Restart restarts the plugin and returns once it was told to start, whether
	// or not it serves by then. nil: cold Decrypts are of seeds that the running
	// plugin has encrypted but not decrypted yet, and there is no storm.
	Restart func(context.Context) error

	// Baseline is the command of a process that calls [ServeBaseline] with its
	// standard input.
	Baseline []string

	// Progress is told what is being measured, as the n-th of so many. It may be nil.
	Progress func(what string, n, of int)
}

// The operations that are measured.
const (
	OpStatus      = "Status"
	OpEncrypt     = "Encrypt"
	OpWarmDecrypt = "Decrypt, warm" // of one record again and again
	OpColdDecrypt = "Decrypt, cold" // of distinct seeds, each once
)

// Result is one operation at one concurrency.
type Result struct {
	Operation string
	Callers   int
	Comparison
}

// Report is all that was measured.
type Report struct {
	Endpoint string
	KeyID    string
	Overhead int // bytes that the plugin adds to each object in etcd
	Started  time.Time
	Options  Options
	Results  []Result
	Storm    *Storm // nil without a Restart
}

type meter struct {
	Options
	plugin   v2.KeyManagementServiceClient
	baseline *Baseline
	report   *Report
	step     int
}

// Run measures the plugin at endpoint, which must be serving.
func Run(ctx context.Context, endpoint string, o Options) (Report, error) {
	if len(o.Concurrency) == 0 || slices.Min(o.Concurrency) < 1 || o.Requests < 1 || o.Seeds < 1 {
		return Report{}, errors.New("callers, requests and seeds must be 1 at least")
	}
	if o.Rounds == 0 {
		o.Rounds = 5
	}
	o.Rounds = min(o.Rounds, o.Requests)
	if o.Progress == nil {
		o.Progress = func(string, int, int) {}
	}
	r := Report{Endpoint: endpoint, Started: time.Now(), Options: o}
	conn, err := Dial(endpoint)
	if err != nil {
		return r, err
	}
	defer conn.Close()
	plugin := v2.NewKeyManagementServiceClient(conn)
	record, err := Seal(ctx, plugin)
	if err != nil {
		return r, fmt.Errorf("encrypting a seed: %w", err)
	}
	r.KeyID, r.Overhead = record.KeyID(), record.Overhead()
	baseline, err := StartBaseline(ctx, record.Shape(), o.Baseline...)
	if err != nil {
		return r, err
	}
	defer baseline.Close()
	m := &meter{Options: o, plugin: plugin, baseline: baseline, report: &r}
	return r, m.all(ctx, record)
}

func (m *meter) all(ctx context.Context, record Record) error {
	bareRecord, err := Seal(ctx, m.baseline.KMS)
	if err != nil {
		return fmt.Errorf("calling the bare service: %w", err)
	}
	steady := []struct {
		operation        string
		plugin, baseline Call
	}{
		{OpStatus, Status(m.plugin), Status(m.baseline.KMS)},
		{OpEncrypt, Encrypt(m.plugin), Encrypt(m.baseline.KMS)},
		{OpWarmDecrypt, record.Decrypt(m.plugin), bareRecord.Decrypt(m.baseline.KMS)},
	}
	for _, s := range steady {
		for _, callers := range m.Concurrency {
			m.progress(s.operation, callers)
			c, err := Load{callers, m.Requests}.Compare(ctx, m.Rounds, s.plugin, s.baseline)
			if err != nil {
				return fmt.Errorf("%s with %d at once: %w", s.operation, callers, err)
			}
			m.add(s.operation, callers, c)
		}
	}
	for _, callers := range m.Concurrency {
		m.progress(OpColdDecrypt, callers)
		c, err := m.cold(ctx, callers)
		if err != nil {
			return fmt.Errorf("%s with %d at once: %w", OpColdDecrypt, callers, err)
		}
		m.add(OpColdDecrypt, callers, c)
	}
	if m.Restart == nil {
		return nil
	}
	callers := slices.Max(m.Concurrency)
	m.progress("restart storm", callers)
	m.report.Storm, err = m.storm(ctx, callers)
	return err
}

func (m *meter) progress(operation string, callers int) {
	m.step++
	of := 4 * len(m.Concurrency)
	if m.Restart != nil {
		of++
	}
	m.Progress(fmt.Sprintf("%s, %d at once", operation, callers), m.step, of)
}

func (m *meter) add(operation string, callers int, c Comparison) {
	m.report.Results = append(m.report.Results, Result{operation, callers, c})
}

// cold decrypts seeds that the process has not decrypted before.
func (m *meter) cold(ctx context.Context, callers int) (Comparison, error) {
	p, b, err := m.sealBoth(ctx)
	if err != nil {
		return Comparison{}, err
	}
	if m.Restart != nil {
		if err := m.Restart(ctx); err != nil {
			return Comparison{}, fmt.Errorf("restarting the plugin: %w", err)
		}
		if err := m.wait(ctx); err != nil {
			return Comparison{}, err
		}
		if err := m.baseline.Restart(ctx); err != nil {
			return Comparison{}, err
		}
	}
	return Load{callers, m.Seeds}.Compare(ctx, 1, DecryptEach(m.plugin, p), DecryptEach(m.baseline.KMS, b))
}

// wait gives the restarted plugin its time.
func (m *meter) wait(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	if err := serving(ctx, m.plugin); err != nil {
		return fmt.Errorf("the plugin does not serve %s after its restart: %w", startLimit, err)
	}
	return nil
}

// sealBoth makes records of both services.
func (m *meter) sealBoth(ctx context.Context) (plugin, baseline []Record, err error) {
	callers := slices.Max(m.Concurrency)
	if plugin, err = SealAll(ctx, m.plugin, callers, m.Seeds); err != nil {
		return nil, nil, err
	}
	if baseline, err = SealAll(ctx, m.baseline.KMS, callers, m.Seeds); err != nil {
		return nil, nil, fmt.Errorf("calling the bare service: %w", err)
	}
	return plugin, baseline, nil
}

// startLimit is how long a restarted plugin may take until it serves.
const startLimit = time.Minute

// serving waits until Status is good or ctx ends. A first call may still go to the
// connection that ended with the last process, so one error says nothing.
func serving(ctx context.Context, kms v2.KeyManagementServiceClient) error {
	for {
		call, cancel := context.WithTimeout(ctx, CallTimeout)
		s, err := kms.Status(call, &v2.StatusRequest{})
		cancel()
		if err == nil && s.Healthz == "ok" {
			return nil
		}
		if err == nil {
			err = fmt.Errorf("its healthz is %q", s.Healthz)
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(20 * time.Millisecond):
		}
	}
}

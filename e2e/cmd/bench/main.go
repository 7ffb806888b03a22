// Bench measures the figures of the README: the daemon as a process, over its
// socket, against baselines in the same run. It prints a table and ends with
// status 1 if a figure is not reached.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	v2 "k8s.io/kms/apis/v2"

	"github.com/kube-kek/kube-kek/e2e/internal/lab"
	"github.com/kube-kek/kube-kek/e2e/internal/parts"
	"github.com/kube-kek/kube-kek/kek/awskms/awskmstest"
	"github.com/kube-kek/kube-kek/plugin/bench"
)

func main() {
	if len(os.Args) == 2 && os.Args[1] == "bare" {
		if err := bench.ServeBaseline(os.Stdin); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	missed := 0
	status := lab.Main(ctx, func(h lab.Host) { missed = run(h) })
	os.Exit(max(status, min(missed, 1)))
}

// figure is one line of the table.
type figure struct {
	what    string
	target  string
	got     string
	reached bool
}

type figures struct {
	lab.Host
	all []figure
}

// atMost and atLeast add a figure with its bound. The format is of both.
func (b *figures) atMost(what, format string, bound, got float64) {
	b.add(what, "≤ "+fmt.Sprintf(format, bound), fmt.Sprintf(format, got), got <= bound)
}

func (b *figures) atLeast(what, format string, bound, got float64) {
	b.add(what, "≥ "+fmt.Sprintf(format, bound), fmt.Sprintf(format, got), got >= bound)
}

func (b *figures) add(what, target, got string, reached bool) {
	b.Logf("%s: %s (%s)", what, got, target)
	b.all = append(b.all, figure{what, target, got, reached})
}

func (b *figures) must(err error) {
	b.Helper()
	if err != nil {
		b.Fatalf("%v", err)
	}
}

// run prints the table and returns how many figures were missed.
func run(h lab.Host) (missed int) {
	b := &figures{Host: h}
	b.perCall()
	b.coldSeeds()
	b.steadyState()
	b.footprint()
	b.overhead()

	fmt.Println("\n| figure | to reach | measured |\n|---|---|---|")
	for _, f := range b.all {
		mark := ""
		if !f.reached {
			mark, missed = " **missed**", missed+1
		}
		fmt.Printf("| %s | %s | %s%s |\n", f.what, f.target, f.got, mark)
	}
	return missed
}

// perCall compares Encrypt and warm Decrypt with the bare service.
func (b *figures) perCall() {
	l := lab.Bare(b)
	p := l.StartPlugin(lab.Config{KEK: l.CreateKeyset("keyset.json").KEK()})
	ctx := b.Context()
	warm, err := bench.Seal(ctx, p.KMS)
	b.must(err)
	self, err := os.Executable()
	b.must(err)
	baseline, err := bench.StartBaseline(ctx, warm.Shape(), self, "bare")
	b.must(err)
	b.Cleanup(func() { baseline.Close() })
	bare, err := bench.Seal(ctx, baseline.KMS)
	b.must(err)
	for _, m := range []struct {
		name           string
		ours, baseline bench.Call
	}{
		{"Encrypt", bench.Encrypt(p.KMS), bench.Encrypt(baseline.KMS)},
		{"warm Decrypt", warm.Decrypt(p.KMS), bare.Decrypt(baseline.KMS)},
	} {
		const rounds = 9
		c, err := bench.Load{Callers: 1, Calls: rounds * 3000}.Compare(ctx, rounds, m.ours, m.baseline)
		b.must(err)
		b.atMost(m.name+", 1 caller: p50 against a bare gRPC service", "%.2f×", 1.15, c.P50)
		c, err = bench.Load{Callers: 64, Calls: rounds * 20000}.Compare(ctx, rounds, m.ours, m.baseline)
		b.must(err)
		b.atLeast(m.name+", 64 callers: throughput against it", "%.2f×", 0.85, c.Throughput)
	}
	_, err = bench.Load{Callers: 64, Calls: 100_000}.Run(ctx, warm.Decrypt(p.KMS))
	b.must(err)
	b.atMost("resident memory after that and 100,000 requests more", "%.1f MiB", 25, b.resident(p))
}

// coldSeeds compares a restart of the plugin and of kube-apiserver, which then
// asks for all its seeds one after the other, with and without local KEKs.
func (b *figures) coldSeeds() {
	const seeds, localKEKs = 200, 3
	l := lab.Bare(b)
	aws := l.StartAWSDirect()
	cold := func(c lab.Config, starts int) (time.Duration, int) {
		c.KEK = aws.KEK()
		p := l.StartPlugin(c)
		conn, err := bench.Dial("unix://" + p.Socket)
		b.must(err)
		defer conn.Close()
		kms := v2.NewKeyManagementServiceClient(conn)
		var records []bench.Record
		for i := range seeds {
			if i > 0 && i%(seeds/starts+1) == 0 {
				p.Restart() // a plugin start makes a local KEK
			}
			sealed, err := bench.Seal(b.Context(), kms)
			b.must(err)
			records = append(records, sealed)
		}
		p.Stop()
		if c.Lease != "0" {
			p.Forget()
		}
		p.Start()
		p.WaitServing()
		aws.Server.SetFault(awskmstest.Fault{Latency: 20 * time.Millisecond})
		defer aws.Server.SetFault()
		calls := p.Metrics().Sum("kube_kek_kms_requests_total", "purpose", "request")
		took, err := bench.Load{Callers: 1, Calls: seeds}.Run(b.Context(), bench.DecryptEach(kms, records))
		b.must(err)
		calls = p.Metrics().Sum("kube_kek_kms_requests_total", "purpose", "request") - calls
		p.Stop()
		return took.Elapsed, int(calls)
	}
	took, calls := cold(lab.Config{}, localKEKs)
	strict, strictCalls := cold(lab.Config{Lease: "0", MaxUses: 1}, 1)
	b.atMost("200 cold seeds under 3 local KEKs, KMS 20 ms away: KMS calls", "%.0f", localKEKs, float64(calls))
	b.atLeast(fmt.Sprintf("the same against the strict mode (%d calls): faster", strictCalls), "%.0f×", 30, strict.Seconds()/took.Seconds())
}

// steadyState runs an hour a hundred times as fast: Renew is 3 s instead of 5
// minutes, and Status is asked every 600 ms instead of every minute.
func (b *figures) steadyState() {
	const hour = 36 * time.Second
	l := lab.Bare(b)
	aws := l.StartAWSDirect()
	p := l.StartPlugin(lab.Config{KEK: aws.KEK(), Renew: "3s"})
	defer p.Stop()
	before := aws.Calls()
	statuses := 0
	for end := time.Now().Add(hour); time.Now().Before(end); time.Sleep(600 * time.Millisecond) {
		_, err := p.Status()
		b.must(err)
		statuses++
	}
	b.atMost("KMS calls per node and hour in the steady state (an hour scaled to 36 s)", "%.0f", 40, float64(aws.Calls()-before))
	b.atMost(fmt.Sprintf("of them caused by its %d Statuses", statuses), "%.0f", 0,
		p.Metrics().Sum("kube_kek_kms_requests_total", "purpose", "request"))
}

// footprint measures the binary and its start.
func (b *figures) footprint() {
	binary, err := parts.Path(b.Context(), parts.Daemon)
	b.must(err)
	info, err := os.Stat(binary)
	b.must(err)
	b.atMost("daemon with these two homes, stripped", "%.1f MB", 25, float64(info.Size())/1e6)

	l := lab.Bare(b)
	p := l.NewPlugin(lab.Config{KEK: l.CreateKeyset("keyset.json").KEK()})
	best := time.Hour
	for range 5 {
		start := time.Now()
		p.Start()
		b.answers(p.Socket)
		best = min(best, time.Since(start))
		p.Stop()
	}
	b.atMost("start to serving on the keyset, best of 5", "%.0f ms", 100, float64(best.Milliseconds()))
}

// answers waits for a good Status, each time over a connection of its own: gRPC
// waits a second before it dials again.
func (b *figures) answers(socket string) {
	for range 5000 {
		time.Sleep(time.Millisecond)
		if _, err := os.Stat(socket); err != nil {
			continue
		}
		conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
		b.must(err)
		_, err = v2.NewKeyManagementServiceClient(conn).Status(b.Context(), &v2.StatusRequest{})
		conn.Close()
		if err == nil {
			return
		}
	}
	b.Fatalf("the daemon does not start")
}

// overhead weighs what the plugin adds to each Secret in etcd.
func (b *figures) overhead() {
	l := lab.Bare(b)
	p := l.StartPlugin(lab.Config{KEK: l.StartAWSDirect().KEK()})
	sealed, err := bench.Seal(b.Context(), p.KMS)
	b.must(err)
	b.atMost("overhead per record with an AWS ARN", "%.0f bytes", 420, float64(sealed.Overhead()))
}

// resident returns VmRSS in MiB.
func (b *figures) resident(p *lab.Plugin) float64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
	b.must(err)
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			b.must(err)
			return kib / 1024
		}
	}
	b.Fatalf("no VmRSS of process %d", p.PID())
	return 0
}

package main

import (
	"context"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"

	"github.com/kube-kek/kube-kek/cmd/kube-kek/internal/config"
	"github.com/kube-kek/kube-kek/kek/localkek"
	"github.com/kube-kek/kube-kek/plugin"
)

func newServe() *cobra.Command {
	var o options
	c := &cobra.Command{
		Use:   "serve",
		Short: "Serve KMS v2 on a unix socket until SIGTERM or SIGINT",
		Long: `Serves KMS v2 on a unix socket until SIGTERM or SIGINT, which let the calls under
way end and remove the socket. SIGHUP opens the audit log again.

The socket listens from the first moment, whether the KMS can be reached or not:
a plugin that waits for its KMS says so in Status, in its log and on /readyz, and
goes on by itself when the KMS is back.

The AWS SDK's own environment variables and files work.`,
		Example: `  kube-kek serve --kek tink-keyset:///etc/kube-kek/keyset.json --cluster lab --socket /run/kube-kek/kube-kek.sock
  kube-kek serve --config /etc/kube-kek/config.yaml`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			hardened := harden()
			ctx, stop := signal.NotifyContext(c.Context(), syscall.SIGTERM, syscall.SIGINT)
			defer stop()
			context.AfterFunc(ctx, stop) // a second signal ends the process at once

			d, err := o.load(c.Flags())
			if err != nil {
				return err
			}
			registry := newRegistry()
			metrics := plugin.NewMetrics(registry, buildLabels())
			homes := openHomes(ctx, d, metrics.Calls)
			if err := d.Err(); err != nil {
				return err
			}
			log := newLogger(d.Log)
			hardened.log(log)
			if err := serve(ctx, d.Config, homes, registry, metrics, log); err != nil {
				log.Error("kube-kek stops", "error", err.Error())
				return failure{}
			}
			log.Info("kube-kek has stopped")
			return nil
		},
	}
	o.register(c.Flags())
	return c
}

// serve runs until ctx ends or the socket is lost. What it starts has ended when
// it returns.
func serve(ctx context.Context, c config.Config, homes []localkek.Home, registry *prometheus.Registry, metrics *plugin.Metrics, log *slog.Logger) error {
	announce(c, homes, log)
	ring, err := localkek.New(ringConfig(c, homes, log))
	if err != nil {
		return err
	}
	defer ring.Close()
	metrics.Watch(ring)
	audit, err := openAudit(c.Audit, log)
	if err != nil {
		return err
	}
	if audit != nil {
		defer audit.Close()
	}
	lis, err := plugin.Listen(plugin.SocketConfig{
		Path: c.Socket.Path, Mode: fs.FileMode(c.Socket.Mode), UID: c.Socket.UID, GID: c.Socket.GID,
		AllowedUIDs: c.Socket.AllowedUIDs, OnRefused: metrics.PeerRefused, Logger: log,
	})
	if err != nil {
		return err
	}

	// The ring and the health page outlive ctx: calls that drain need the one,
	// and whoever watches the drain the other.
	background, end := context.WithCancel(context.WithoutCancel(ctx))
	var running sync.WaitGroup
	defer running.Wait()
	defer end()
	running.Go(func() { ring.Run(background) })
	running.Go(func() { serveHealth(background, c.Health.Address, plugin.NewHealthServer(ring, registry), log) })
	running.Go(func() { reopenOnHangup(background, audit, log) })

	service := plugin.NewService(plugin.Config{Ring: ring, Audit: audit, Logger: log})
	log.Info("listening", "socket", c.Socket.Path)
	if err := releaseImage(); err != nil {
		log.Debug("memory that starting has touched stays resident", "error", err.Error())
	}
	return plugin.Serve(ctx, plugin.NewServer(service, metrics, log), lis, plugin.DrainTimeout, log)
}

func ringConfig(c config.Config, homes []localkek.Home, log *slog.Logger) localkek.Config {
	return localkek.Config{
		Cluster: c.Cluster, Current: homes[0], Previous: homes[1:],
		Lease: time.Duration(c.Lease), Renew: time.Duration(c.Renew), MaxUses: c.MaxUses, CacheSize: c.CacheSize,
		CallTimeout: time.Duration(c.Timeouts.Call), Logger: log,
		// Beside the socket: a directory that is ours alone, and there.
		Store: localkek.FileStore{Path: c.Socket.Path + ".known"},
	}
}

// announce logs what this process is about to be.
func announce(c config.Config, homes []localkek.Home, log *slog.Logger) {
	b := buildInfo()
	lease := c.Lease.String()
	if c.Lease == 0 {
		lease = "0 (strict: each Encrypt and Decrypt asks the KMS)"
	}
	log.Info("kube-kek starts", "version", b.Version, "revision", b.Revision, "cluster", c.Cluster,
		"provider", homes[0].Scheme, "kek", c.KEK.URI, "epoch", c.KEK.Epoch, "previous", len(c.Previous),
		"lease", lease, "renew", c.Renew.String(), "socket", c.Socket.Path, "allowed_uids", c.Socket.AllowedUIDs)
}

// openAudit returns nil where no audit log is wanted. One that is not required
// may fail to open: the control plane does not wait for a log's disk.
func openAudit(a config.Audit, log *slog.Logger) (*plugin.AuditLog, error) {
	if a.Path == "" {
		return nil, nil
	}
	audit, err := plugin.NewAuditLog(a.Path, a.Required)
	if err != nil && !a.Required {
		log.Error("the audit log cannot be opened; audit.required is false, so kube-kek serves, and tries again at each line", "error", err.Error())
		err = nil
	}
	return audit, err
}

func reopenOnHangup(ctx context.Context, audit *plugin.AuditLog, log *slog.Logger) {
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangup:
		}
		if audit == nil {
			log.Info("SIGHUP: there is no audit log to open again")
		} else if err := audit.Reopen(); err != nil {
			log.Error("SIGHUP: opening the audit log again", "error", err.Error())
		} else {
			log.Info("SIGHUP: the audit log is open again")
		}
	}
}

func newLogger(l config.Log) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(l.Level)); err != nil {
		level = slog.LevelInfo // Validate lets no other word through
	}
	opts := &slog.HandlerOptions{Level: level}
	if l.Format == "text" {
		return slog.New(slog.NewTextHandler(os.Stderr, opts))
	}
	return slog.New(slog.NewJSONHandler(os.Stderr, opts))
}

func newRegistry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

func buildLabels() plugin.Build {
	b := buildInfo()
	return plugin.Build{Version: b.Version, Revision: b.Revision}
}

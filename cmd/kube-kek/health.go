package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"
)

// healthRetry is how often a taken address is tried again.
const healthRetry = 30 * time.Second

// serveHealth serves on address until ctx ends. An address that is taken is
// logged and tried again: the KMS is worth more than its metrics.
func serveHealth(ctx context.Context, address string, srv *http.Server, log *slog.Logger) {
	if address == "" {
		return
	}
	lis, err := net.Listen("tcp", address)
	if err != nil {
		log.Error("metrics and health are not served for now; KMS v2 is", "address", address, "error", err.Error())
	}
	for err != nil {
		select {
		case <-ctx.Done():
			return
		case <-time.After(healthRetry):
		}
		lis, err = net.Listen("tcp", address)
	}
	log.Info("serving metrics and health", "address", lis.Addr().String())
	defer context.AfterFunc(ctx, func() { srv.Close() })()
	if err := srv.Serve(lis); !errors.Is(err, http.ErrServerClosed) {
		log.Error("metrics and health are not served any more", "address", address, "error", err.Error())
	}
}

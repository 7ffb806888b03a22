package main

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	v2 "k8s.io/kms/apis/v2"
)

// probeResult is what a running plugin answered.
type probeResult struct {
	OK      bool   `json:"ok"`
	KeyID   string `json:"keyID"`
	Version string `json:"version"`

	CiphertextBytes int `json:"ciphertextBytes"`
	AnnotationBytes int `json:"annotationBytes"` // names and values

	StatusSeconds  float64 `json:"statusSeconds"`
	EncryptSeconds float64 `json:"encryptSeconds"`
	DecryptSeconds float64 `json:"decryptSeconds"`
}

func newProbe() *cobra.Command {
	var socket string
	var timeout time.Duration
	var out output
	c := &cobra.Command{
		Use:   "probe --socket PATH",
		Short: "Ask a running plugin for Status, Encrypt and Decrypt, as kube-apiserver does",
		Long: `Calls Status, then Encrypt and Decrypt of 32 random bytes, through the socket of a
running KMS v2 plugin, and compares. Exit code 0 says that kube-apiserver could
work with it now. It must run as a user that the plugin lets in.`,
		Example: "  kube-kek probe --socket /run/kube-kek/kube-kek.sock",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if !strings.HasPrefix(socket, "/") {
				return fmt.Errorf("--socket must be an absolute path, not %q", socket)
			}
			if timeout <= 0 {
				return errors.New("--timeout must be more than 0")
			}
			r, err := probe(c.Context(), socket, timeout)
			if err != nil {
				return failure{fmt.Errorf("probing %s: %w", socket, err)}
			}
			if out == outputJSON {
				return writeJSON(c, r)
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), `key_id   %s
status   %s, %s
encrypt  %s, ciphertext of %d bytes, annotations of %d bytes
decrypt  %s, the same 32 bytes came back
ok
`, r.KeyID, r.Version, millis(r.StatusSeconds), millis(r.EncryptSeconds), r.CiphertextBytes, r.AnnotationBytes, millis(r.DecryptSeconds))
			return err
		},
	}
	c.Flags().StringVar(&socket, "socket", "", "absolute `PATH` of the plugin's unix socket")
	c.Flags().DurationVar(&timeout, "timeout", 3*time.Second, "of each call; kube-apiserver's default is 3s")
	c.MarkFlagRequired("socket")
	out.register(c)
	return c
}

// probe does what kube-apiserver does at its start. A single call that takes
// longer than timeout is an error.
func probe(ctx context.Context, socket string, timeout time.Duration) (probeResult, error) {
	var r probeResult
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return r, err
	}
	defer conn.Close()
	client := v2.NewKeyManagementServiceClient(conn)

	var status *v2.StatusResponse
	if r.StatusSeconds, err = timed(ctx, timeout, func(ctx context.Context) (err error) {
		status, err = client.Status(ctx, &v2.StatusRequest{})
		return err
	}); err != nil {
		return r, fmt.Errorf("status: %w", err)
	}
	r.KeyID, r.Version = status.KeyId, status.Version
	if status.Healthz != "ok" {
		return r, fmt.Errorf("status: healthz is %q, not ok", status.Healthz)
	}

	seed, uid := make([]byte, 32), make([]byte, 8)
	rand.Read(seed) // never fails (crypto/rand)
	rand.Read(uid)
	var sealed *v2.EncryptResponse
	if r.EncryptSeconds, err = timed(ctx, timeout, func(ctx context.Context) (err error) {
		sealed, err = client.Encrypt(ctx, &v2.EncryptRequest{Plaintext: seed, Uid: "probe-" + hex.EncodeToString(uid)})
		return err
	}); err != nil {
		return r, fmt.Errorf("encrypt: %w", err)
	}
	if sealed.KeyId != r.KeyID {
		return r, fmt.Errorf("encrypt: used key_id %q, but status says %q", sealed.KeyId, r.KeyID)
	}
	r.CiphertextBytes = len(sealed.Ciphertext)
	for name, value := range sealed.Annotations {
		r.AnnotationBytes += len(name) + len(value)
	}

	var opened *v2.DecryptResponse
	if r.DecryptSeconds, err = timed(ctx, timeout, func(ctx context.Context) (err error) {
		opened, err = client.Decrypt(ctx, &v2.DecryptRequest{
			Ciphertext: sealed.Ciphertext, KeyId: sealed.KeyId, Annotations: sealed.Annotations, Uid: "probe-" + hex.EncodeToString(uid),
		})
		return err
	}); err != nil {
		return r, fmt.Errorf("decrypt: %w", err)
	}
	if subtle.ConstantTimeCompare(seed, opened.Plaintext) != 1 {
		return r, errors.New("decrypt: other bytes came back than were encrypted")
	}
	r.OK = true
	return r, nil
}

// timed runs one call and returns how long it took in seconds.
func timed(ctx context.Context, timeout time.Duration, call func(context.Context) error) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	start := time.Now()
	err := call(ctx)
	return time.Since(start).Seconds(), err
}

func millis(seconds float64) string { return fmt.Sprintf("%.1f ms", seconds*1000) }

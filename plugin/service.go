package plugin

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	v2 "k8s.io/kms/apis/v2"

	"github.com/kube-kek/kube-kek/kek"
	"github.com/kube-kek/kube-kek/kek/localkek"
)

// The limits of the KMS v2 API in bytes (k8s.io/apiserver,
// storage/value/encrypt/envelope/kmsv2). kube-apiserver throws away an answer
// that exceeds them, and never sends a record that does.
const (
	maxKeyID       = 1024
	maxCiphertext  = 1024
	maxAnnotations = 32 << 10 // keys and values together
)

// Ring is what the service needs of a [localkek.Ring]. Seal and Open end within
// 3 s by themselves, when kube-apiserver gives up unless its
// EncryptionConfiguration says otherwise: an answer before that tells it why.
type Ring interface {
	KeyID() (string, error)
	Seal(ctx context.Context, seed []byte) (localkek.Sealed, error)
	Open(ctx context.Context, s localkek.Sealed) ([]byte, error)
}

// Config is what a Service is made from.
type Config struct {
	// Ring seals and opens.
	Ring Ring

	// Audit gets a line for each Encrypt and Decrypt. nil keeps no audit log.
	Audit *AuditLog

	// Logger hears of each failed Encrypt and Decrypt, and of Status when its
	// answer changes. nil discards.
	Logger *slog.Logger
}

// Service answers KMS v2 (k8s.io/kms/apis/v2, KEP-3299) from a ring of local
// KEKs. Errors are gRPC status errors whose code is [Code] of the Kind.
type Service struct {
	v2.UnimplementedKeyManagementServiceServer
	ring  Ring
	audit *AuditLog
	log   *slog.Logger

	lastStatus onChange // what Status answered
	lastAudit  onChange // whether the audit log could be written
}

// NewService returns a service. It asks nobody.
func NewService(c Config) *Service {
	s := &Service{ring: c.Ring, audit: c.Audit, log: c.Logger}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	return s
}

// Status answers from memory. Without a usable current local KEK it is an error
// and never a healthz other than "ok" beside a key_id: that would make
// kube-apiserver extend its old seed for ever (kubernetes/kubernetes#138950).
func (s *Service) Status(context.Context, *v2.StatusRequest) (*v2.StatusResponse, error) {
	keyID, err := s.ring.KeyID()
	if err != nil {
		// The Kind and not the text: a home's error may hold a request ID, and
		// kube-apiserver asks every 10 seconds.
		if kind := kek.KindOf(err).String(); s.lastStatus.set(kind) {
			s.log.Warn("not ready to encrypt; kube-apiserver writes on for 3 minutes at most",
				"method", "Status", "kind", kind, "error", err.Error())
		}
		return nil, statusError("Status", err)
	}
	if s.lastStatus.set("") {
		s.log.Info("ready to encrypt again", "method", "Status", "key_id", keyID)
	}
	return &v2.StatusResponse{Version: "v2", Healthz: "ok", KeyId: keyID}, nil
}

// Encrypt seals a seed under the current local KEK.
func (s *Service) Encrypt(ctx context.Context, req *v2.EncryptRequest) (*v2.EncryptResponse, error) {
	c := s.begin(ctx, "Encrypt", req.GetUid())
	sealed, err := s.ring.Seal(c.ctx, req.GetPlaintext())
	if err == nil {
		err = checkLimits(sealed)
	}
	if err := c.end(sealed.KeyID, err); err != nil {
		return nil, err
	}
	return &v2.EncryptResponse{
		Ciphertext:  sealed.Ciphertext,
		KeyId:       sealed.KeyID,
		Annotations: sealed.Annotations,
	}, nil
}

// Decrypt opens what Encrypt returned. gRPC copies the seed into its own buffers
// and leaves it to the garbage collector; that copy cannot be cleared.
func (s *Service) Decrypt(ctx context.Context, req *v2.DecryptRequest) (*v2.DecryptResponse, error) {
	c := s.begin(ctx, "Decrypt", req.GetUid())
	sealed := localkek.Sealed{
		KeyID:       req.GetKeyId(),
		Ciphertext:  req.GetCiphertext(),
		Annotations: req.GetAnnotations(),
	}
	var seed []byte
	err := checkLimits(sealed)
	if err == nil {
		seed, err = s.ring.Open(c.ctx, sealed)
	}
	if err := c.end(sealed.KeyID, err); err != nil {
		clear(seed)
		return nil, err
	}
	return &v2.DecryptResponse{Plaintext: seed}, nil
}

// checkLimits holds a record, ours or one that we are given, to the API's limits.
func checkLimits(s localkek.Sealed) error {
	annotations := 0
	for name, value := range s.Annotations {
		annotations += len(name) + len(value)
	}
	switch {
	case len(s.KeyID) < 1 || len(s.KeyID) > maxKeyID:
		return fmt.Errorf("key_id of %d bytes, not 1 to %d: %w", len(s.KeyID), maxKeyID, kek.Invalid)
	case len(s.Ciphertext) < 1 || len(s.Ciphertext) > maxCiphertext:
		return fmt.Errorf("ciphertext of %d bytes, not 1 to %d: %w", len(s.Ciphertext), maxCiphertext, kek.Invalid)
	case annotations > maxAnnotations:
		return fmt.Errorf("annotations of %d bytes, at most %d: %w", annotations, maxAnnotations, kek.Invalid)
	}
	return nil
}

// call is one Encrypt or Decrypt on its way.
type call struct {
	s      *Service
	ctx    context.Context
	method string
	uid    string
	start  time.Time
	homes  kek.Calls // request IDs of the calls to homes that it caused
}

func (s *Service) begin(ctx context.Context, method, uid string) *call {
	c := &call{s: s, ctx: ctx, method: method, uid: clip(uid, maxUID), start: time.Now()}
	if s.audit != nil {
		c.ctx = kek.WithCalls(ctx, &c.homes)
	}
	return c
}

// end logs and audits the call and returns its answer's error: that of the
// operation, or that its audit line could not be written where it must be.
func (c *call) end(keyID string, err error) error {
	kind, outcome, code := kek.Unknown, "ok", codes.OK
	if err != nil {
		kind = kek.KindOf(err)
		outcome, code = kind.String(), Code(kind)
		c.s.log.Warn("operation failed", "method", c.method, "uid", c.uid, "key_id", clip(keyID, maxKeyID),
			"kind", outcome, "error", err.Error())
	}
	if c.s.audit != nil {
		auditErr := c.s.audit.Write(AuditEntry{
			Time: c.start, UID: c.uid, Method: c.method, KeyID: clip(keyID, maxKeyID),
			Outcome: outcome, Code: code.String(), DurationSeconds: time.Since(c.start).Seconds(),
			KMSRequestIDs: c.homes.IDs(),
		})
		if auditErr = c.audited(auditErr); auditErr != nil && err == nil {
			return auditErr
		}
	}
	if err != nil {
		return statusError(c.method, err)
	}
	return nil
}

// audited logs a change of the audit log's health, and returns the refusal of a
// call whose line must be written and was not.
func (c *call) audited(err error) error {
	if err == nil {
		if c.s.lastAudit.set("") {
			c.s.log.Info("the audit log is written again")
		}
		return nil
	}
	required := c.s.audit.Required()
	if c.s.lastAudit.set(err.Error()) {
		c.s.log.Error("the audit log is not written", "required", required, "method", c.method, "uid", c.uid, "error", err.Error())
	}
	if !required {
		return nil
	}
	return status.Errorf(codes.Unavailable, "%s: refused, because its line in the audit log is required and could not be written: %v", c.method, err)
}

// onChange remembers a text, so that what repeats is logged once. It starts
// with the empty text.
type onChange struct {
	mu   sync.Mutex
	text string
}

// set reports whether text differs from the one before.
func (o *onChange) set(text string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	changed := o.text != text
	o.text = text
	return changed
}

package gcpkmstest

import (
	"context"
	"slices"
	"time"

	"cloud.google.com/go/kms/apiv1/kmspb"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"
)

// Damage is what a fault does to a good answer of Encrypt or Decrypt.
type Damage int

// The kinds of damage.
const (
	NoDamage      Damage = iota
	FlipData             // a bit of the ciphertext or plaintext
	FlipChecksum         // a bit of its checksum
	DropChecksum         // no checksum
	Unverified           // the request's checksums got lost: the verified_… flags are false
	ForeignName          // the name of another key
	EmptiedAnswer        // an answer without any field
)

// Fault is something that goes wrong. Of the effects at most one besides
// Latency should be set; with Latency alone the call succeeds, late.
type Fault struct {
	Methods   []string // "Decrypt", …; none: every method of KMS
	Principal string   // the caller; "": every caller
	Times     int      // how many calls it befalls; 0: until SetFault is called again

	Latency time.Duration // waits first

	Code       codes.Code // answers with this error
	Message    string     // its text
	Reason     string     // the reason of an ErrorInfo, e.g. "ACCESS_TOKEN_SCOPE_INSUFFICIENT"
	Violation  string     // the type of a PreconditionFailure, e.g. "KEY_DISABLED"
	RetryDelay time.Duration

	Damage Damage
	Hang   bool // does not answer until the client leaves or the faults are changed
	Drop   bool // cuts the connection, with all calls on it
}

// SetFault replaces all faults. The first that fits a call befalls it. Without
// an argument all is well again. Calls that hang end as Unavailable.
func (s *Server) SetFault(faults ...Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = nil
	for _, f := range faults {
		s.faults = append(s.faults, &f)
	}
	close(s.unhang)
	s.unhang = make(chan struct{})
}

// takeFault returns the fault that befalls the call, and counts it.
func (s *Server) takeFault(c *Call) (f Fault, unhang chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, f := range s.faults {
		if len(f.Methods) > 0 && !slices.Contains(f.Methods, c.Method) || f.Principal != "" && f.Principal != c.Principal {
			continue
		}
		if f.Times > 0 {
			if f.Times--; f.Times == 0 {
				s.faults = slices.Delete(slices.Clone(s.faults), i, i+1)
			}
		}
		return *f, s.unhang
	}
	return Fault{}, s.unhang
}

// applyFault reports whether the call was answered by a fault.
func (s *Server) applyFault(ctx context.Context, c *Call) (f Fault, answered bool, err error) {
	f, unhang := s.takeFault(c)
	if f.Latency > 0 {
		select {
		case <-time.After(f.Latency):
		case <-ctx.Done():
		}
	}
	if f.Hang {
		select {
		case <-unhang:
		case <-ctx.Done():
			return f, true, status.FromContextError(ctx.Err()).Err()
		}
		return f, true, status.Error(codes.Unavailable, "the call hung")
	}
	if f.Drop {
		if from, ok := peer.FromContext(ctx); ok {
			s.listener.cut(from.Addr.String())
		}
		return f, true, status.Error(codes.Unavailable, "the connection was cut")
	}
	if f.Code == codes.OK {
		return f, false, nil
	}
	var details []protoadapt.MessageV1
	if f.Reason != "" {
		details = append(details, &errdetails.ErrorInfo{Reason: f.Reason, Domain: "googleapis.com"})
	}
	if f.Violation != "" {
		details = append(details, violation(f.Violation, c.Name))
	}
	if f.RetryDelay > 0 {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(f.RetryDelay)})
	}
	return f, true, refuse(f.Code, f.Message, details...)
}

func violation(kind, subject string) *errdetails.PreconditionFailure {
	return &errdetails.PreconditionFailure{Violations: []*errdetails.PreconditionFailure_Violation{{Type: kind, Subject: subject}}}
}

// refuse is an error as Google words it, with details that programs can read.
func refuse(code codes.Code, message string, details ...protoadapt.MessageV1) error {
	st, err := status.New(code, message).WithDetails(details...)
	if err != nil {
		return status.Error(codes.Internal, err.Error())
	}
	return st.Err()
}

func (f Fault) damage(reply any) {
	switch out := reply.(type) {
	case *kmspb.CryptoKey:
		switch f.Damage {
		case ForeignName:
			out.Name += "-other"
		case EmptiedAnswer:
			out.Reset()
		}
	case *kmspb.EncryptResponse:
		switch f.Damage {
		case FlipData:
			out.Ciphertext[len(out.Ciphertext)-1] ^= 1
		case FlipChecksum:
			out.CiphertextCrc32C.Value ^= 1
		case DropChecksum:
			out.CiphertextCrc32C = nil
		case Unverified:
			out.VerifiedPlaintextCrc32C, out.VerifiedAdditionalAuthenticatedDataCrc32C = false, false
		case ForeignName:
			out.Name = "projects/p/locations/l/keyRings/r/cryptoKeys/other/cryptoKeyVersions/1"
		case EmptiedAnswer:
			out.Reset()
		}
	case *kmspb.DecryptResponse:
		switch f.Damage {
		case FlipData:
			out.Plaintext[0] ^= 1
		case FlipChecksum:
			out.PlaintextCrc32C.Value ^= 1
		case DropChecksum:
			out.PlaintextCrc32C = nil
		case EmptiedAnswer:
			out.Reset()
		}
	}
}

package plugin

import (
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kube-kek/kube-kek/kek"
)

// grpcCodes is what kube-apiserver hears for each Kind. It treats every code
// alike; the codes are for its logs and metrics, where an operator must tell an
// outage (Unavailable, ResourceExhausted, Unauthenticated) from the KMS's word
// (PermissionDenied, FailedPrecondition) and from a bad record (InvalidArgument).
var grpcCodes = [...]codes.Code{
	kek.Unknown:         codes.Unknown,
	kek.Unavailable:     codes.Unavailable,
	kek.Throttled:       codes.ResourceExhausted,
	kek.Unauthenticated: codes.Unauthenticated,
	kek.Denied:          codes.PermissionDenied,
	kek.KeyNotFound:     codes.FailedPrecondition,
	kek.KeyDisabled:     codes.FailedPrecondition,
	kek.Corrupt:         codes.InvalidArgument,
	kek.Invalid:         codes.InvalidArgument,
}

// Code returns the gRPC code that stands for a Kind.
func Code(k kek.Kind) codes.Code {
	if k < 0 || int(k) >= len(grpcCodes) {
		return codes.Unknown
	}
	return grpcCodes[k]
}

// statusError makes err the answer of a method. Errors hold no key bytes
// ([kek.Error]), so their text may go to kube-apiserver's logs.
func statusError(method string, err error) error {
	return status.Errorf(Code(kek.KindOf(err)), "%s: %v", method, err)
}

package conformance

// Where the demands stand.
const (
	kep        = "KEP-3299 (KMS v2 improvements)"
	api        = "k8s.io/kms/apis/v2/api.proto"
	docs       = "kubernetes.io: Using a KMS provider for data encryption"
	probe      = "k8s.io/apiserver pkg/server/options/encryptionconfig/config.go"
	envelope   = "k8s.io/apiserver pkg/storage/value/encrypt/envelope/kmsv2/envelope.go"
	grpcClient = "k8s.io/apiserver pkg/storage/value/encrypt/envelope/kmsv2/grpc_service.go"
	ours       = "what users of plugins suffered"
)

// basics are the checks that are made even of a plugin that does not encrypt
// and decrypt one seed.
var basics = []string{"status-answers", "round-trip", "socket-path", "socket-mode", "socket-owner", "socket-directory", "other-user"}

// accepted are the checks of what kube-apiserver's own code refuses: while one
// fails, there is no apiserver to drive and no story to tell.
var accepted = []string{
	"status-answers", "status-version", "status-healthz", "key-id-size", "key-id-constant", "key-id-agrees",
	"round-trip", "ciphertext-size", "annotation-names", "annotation-size",
}

// checks is every check in the order in which they run.
var checks = joined(statusChecks, encryptChecks, decryptChecks, loadChecks, hostileChecks, socketChecks, storageChecks,
	growthChecks, rotationStories, restartStories, outageStories, disabledStories, messageChecks)

func joined(groups ...[]check) []check {
	var all []check
	for _, g := range groups {
		all = append(all, g...)
	}
	return all
}

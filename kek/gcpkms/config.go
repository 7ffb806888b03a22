package gcpkms

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"regexp"
	"strings"
	"time"

	kms "cloud.google.com/go/kms/apiv1"
	"github.com/kube-kek/kube-kek/kek"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
)

// Config describes a [Provider]. All but Key and Binding may be left empty.
type Config struct {
	// Key is the resource name of the CryptoKey, never of one of its versions:
	// projects/P/locations/L/keyRings/R/cryptoKeys/K.
	Key string

	// Binding is the additional authenticated data of every Encrypt and Decrypt.
	Binding kek.Binding

	// CredentialsFile is the path of a JSON file of the type external_account
	// (workload identity federation), impersonated_service_account,
	// service_account or authorized_user. Where it is empty,
	// GOOGLE_APPLICATION_CREDENTIALS names the file, and where that is empty too,
	// the metadata server of the machine is asked.
	CredentialsFile string

	// Endpoint is HOST[:PORT] of KMS, with https:// before it or not, where it is
	// not cloudkms.googleapis.com: Private Service Connect, say. It speaks TLS.
	Endpoint string

	// CABundle is the path of a PEM file. Its certificates alone are trusted, by
	// KMS's client and by those that fetch tokens. It is read once, by New.
	CABundle string
}

// maxVersion is the most digits of a version's number that a key ID has room for.
const maxVersion = 10

var keyName = regexp.MustCompile(`^projects/[a-z0-9.:-]+/locations/[a-z0-9-]+/keyRings/[A-Za-z0-9_-]{1,63}/cryptoKeys/[A-Za-z0-9_-]{1,63}$`)

// checkKey refuses names that are not a key's, and those whose key IDs,
// "gcpkms:NAME@VERSION~EPOCH", would be longer than 200 bytes.
func checkKey(name string) error {
	const form = "projects/P/locations/L/keyRings/R/cryptoKeys/K"
	const room = 200 - len(Scheme) - len(":@~999") - maxVersion
	switch key, _, isVersion := strings.Cut(name, versions); {
	case isVersion && keyName.MatchString(key):
		return invalid("%q names one version: name the key alone, %s", name, key)
	case !keyName.MatchString(name):
		return invalid("key %q is not of the form %s", name, form)
	case len(name) > room:
		return invalid("the key's name %q has %d bytes, and %d fit into a key ID: use a key ring and a key with shorter names", name, len(name), room)
	}
	return nil
}

func invalid(format string, args ...any) error {
	return fmt.Errorf("Google Cloud KMS: %w: %w", kek.Invalid, fmt.Errorf(format, args...))
}

// New returns a provider for the key. It reads files and the environment, and
// asks nothing of the network: whether the key exists and may be used, Current
// tells.
func New(ctx context.Context, c Config) (*Provider, error) {
	if err := checkKey(c.Key); err != nil {
		return nil, err
	}
	address, err := parseEndpoint(c.Endpoint)
	if err != nil {
		return nil, err
	}
	trust := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.CABundle != "" {
		pem, err := os.ReadFile(c.CABundle)
		if err != nil {
			return nil, invalid("reading the CA bundle: %w", err)
		}
		trust.RootCAs = x509.NewCertPool()
		if !trust.RootCAs.AppendCertsFromPEM(pem) {
			return nil, invalid("CA bundle %s: no PEM certificate in it", c.CABundle)
		}
	}
	tokens, err := newTokens(cmp.Or(c.CredentialsFile, os.Getenv("GOOGLE_APPLICATION_CREDENTIALS")), trust)
	if err != nil {
		return nil, err
	}
	// The connection is made here, not by the SDK, which would look for S2A,
	// device certificates and a metadata server while it does.
	conn, err := grpc.NewClient("passthrough:///"+address,
		grpc.WithTransportCredentials(credentials.NewTLS(trust.Clone())),
		grpc.WithUnaryInterceptor(tokens.authorize),
		grpc.WithDisableServiceConfig(),
		// gRPC would wait two minutes between attempts late in an outage, and as
		// long for its own resolver; passthrough asks DNS at each attempt.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
			MinConnectTimeout: 5 * time.Second,
		}),
		// A connection that a firewall forgot is found dead in seconds, not minutes.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.WithUserAgent("kube-kek"),
	)
	if err != nil {
		return nil, invalid("the KMS endpoint %s: %w", address, err)
	}
	// Told to by GOOGLE_SDK_GO_LOGGING_LEVEL, the SDK would log plaintext keys.
	client, err := kms.NewKeyManagementClient(ctx, option.WithGRPCConn(conn), option.WithLogger(slog.New(slog.DiscardHandler)))
	if err != nil {
		return nil, invalid("making the client: %w", err)
	}
	client.CallOptions = &kms.KeyManagementCallOptions{} // no retries: kek.Retry does it
	return &Provider{name: c.Key, aad: bytes.Clone(c.Binding.Bytes()), kms: client, tokens: tokens}, nil
}

func parseEndpoint(endpoint string) (address string, err error) {
	if endpoint == "" {
		return "cloudkms.googleapis.com:443", nil
	}
	if !strings.Contains(endpoint, "://") {
		endpoint = "https://" + endpoint
	}
	u, err := url.Parse(endpoint)
	switch {
	case err != nil || u.Hostname() == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "":
		return "", invalid("the KMS endpoint is not like HOST[:PORT] or https://HOST[:PORT]")
	case u.User != nil:
		return "", invalid("the KMS endpoint %s holds credentials: KMS knows no such thing", u.Host)
	case u.Scheme != "https":
		return "", invalid("the KMS endpoint %s://%s must be https: keys would cross the network in clear", u.Scheme, u.Host)
	case u.Port() == "":
		return u.Host + ":443", nil
	}
	return u.Host, nil
}

package awskms

import (
	"bytes"
	"context"
	"crypto/x509"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials/stscreds"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go/logging"
	"github.com/kube-kek/kube-kek/kek"
)

// Config describes a [Provider]. All but Key and Binding may be left empty; the
// SDK's own environment variables and files then say (AWS_REGION,
// AWS_ENDPOINT_URL_KMS, AWS_PROFILE, AWS_CA_BUNDLE, …).
type Config struct {
	// Key is the key's ARN, its ID, "alias/NAME" or an alias ARN.
	Key string

	// Binding is the encryption context of every Encrypt and Decrypt.
	Binding kek.Binding

	// Region is the key's. An ARN in Key has it already.
	Region string

	// Endpoint is the URL of KMS, where it is not AWS's own for the region. It
	// must be https unless it is on the loopback interface.
	Endpoint string

	// RoleARN is a role to assume with the credentials that were found, and
	// ExternalID what its trust policy may demand.
	RoleARN, ExternalID string

	// CABundle is the path of a PEM file. Its certificates alone are trusted, by
	// KMS's client and by STS's. It is read once, by New.
	CABundle string
}

// New returns a provider for the key. It reads files and the environment, and
// asks nothing of the network: whether the key exists and may be used, Current
// tells.
func New(ctx context.Context, c Config) (*Provider, error) {
	arn, region, err := parseKey(c.Key)
	switch {
	case err != nil:
		return nil, err
	case region != "" && c.Region != "" && region != c.Region:
		return nil, invalid("region %q is not that of the key %s", c.Region, c.Key)
	case c.ExternalID != "" && c.RoleARN == "":
		return nil, invalid("an external ID without a role to assume")
	}
	if c.Region != "" {
		region = c.Region
	}
	cfg, err := load(ctx, c, region)
	if err != nil {
		return nil, err
	}
	if cfg.Region == "" {
		return nil, invalid("no region for the key %q: give its ARN, a region, or AWS_REGION", c.Key)
	}
	note := staticNote(ctx, cfg.Credentials)
	from := sourceOf(cfg.Credentials)
	if c.RoleARN != "" {
		cfg.Credentials = assume(cfg, c.RoleARN, c.ExternalID)
	}
	cfg.Credentials = marked{cfg.Credentials, from}

	client := &http.Client{
		Transport:     recorder{cfg.HTTPClient.(*awshttp.BuildableClient).GetTransport()},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Timeout:       requestTimeout,
	}
	kmsClient := kms.NewFromConfig(cfg, func(o *kms.Options) {
		o.HTTPClient = client
		if c.Endpoint != "" {
			o.BaseEndpoint = &c.Endpoint
		}
	})
	if err := checkEndpoint(aws.ToString(kmsClient.Options().BaseEndpoint)); err != nil {
		return nil, err
	}
	return &Provider{
		name: c.Key, arn: arn, binding: maps.Clone(c.Binding),
		http: client, kms: kmsClient, sts: sts.NewFromConfig(cfg), staticNote: note,
	}, nil
}

// requestTimeout ends requests that no caller's deadline ends: the SDK fetches
// credentials once for all who wait, and one fetch that hung for ever would
// leave the process without credentials until it is restarted.
const requestTimeout = 10 * time.Second

func invalid(format string, args ...any) error {
	return fmt.Errorf("AWS KMS: %w: %w", kek.Invalid, fmt.Errorf(format, args...))
}

// parseKey returns the ARN where the key is named by one that is not an alias's,
// and the region where any ARN tells it.
func parseKey(key string) (arn, region string, err error) {
	bad := invalid("key %q is neither arn:aws:kms:REGION:ACCOUNT:key/ID, nor a key ID, alias/NAME or alias ARN", key)
	if !strings.HasPrefix(key, "arn:") {
		if !isKeyID(key) && !isAlias(key) {
			return "", "", bad
		}
		return "", "", nil
	}
	parts := strings.SplitN(key, ":", 6) // arn, partition, service, region, account, resource
	if len(parts) != 6 || !strings.HasPrefix(parts[1], "aws") || parts[2] != "kms" ||
		parts[3] == "" || !consistsOf(parts[3], letters+digits+"-") ||
		len(parts[4]) != 12 || !consistsOf(parts[4], digits) {
		return "", "", bad
	}
	id, isKey := strings.CutPrefix(parts[5], "key/")
	switch {
	case isKey && isKeyID(id):
		return key, parts[3], nil
	case isAlias(parts[5]):
		return "", parts[3], nil
	}
	return "", "", bad
}

const (
	digits  = "0123456789"
	letters = "abcdefghijklmnopqrstuvwxyz"
)

func isAlias(s string) bool {
	name, ok := strings.CutPrefix(s, "alias/")
	return ok && name != "" && len(name) <= 250 && consistsOf(strings.ToLower(name), letters+digits+"/_-")
}

// isKeyID knows a UUID, and the ID of a multi-Region key: "mrk-" and 32 hex digits.
func isKeyID(s string) bool {
	hex := strings.TrimPrefix(s, "mrk-")
	if hex == s {
		if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
			return false
		}
		hex = strings.ReplaceAll(s, "-", "")
	}
	return len(hex) == 32 && consistsOf(hex, digits+"abcdef")
}

func consistsOf(s, characters string) bool { return strings.Trim(s, characters) == "" }

func load(ctx context.Context, c Config, region string) (aws.Config, error) {
	opts := []func(*config.LoadOptions) error{
		config.WithHTTPClient(awshttp.NewBuildableClient().WithTimeout(requestTimeout)),
		config.WithCredentialsCacheOptions(renewEarly),
		// kek.Retry does it, within the caller's time. The SDK's own pauses would
		// outlast that time and hide the cause.
		config.WithRetryer(func() aws.Retryer { return aws.NopRetryer{} }),
		// The mode "auto" would ask the metadata service where it runs, here and now.
		config.WithDefaultsMode(aws.DefaultsModeStandard),
		config.WithLogger(logging.Nop{}), // a provider does not log
	}
	if region != "" {
		opts = append(opts, config.WithRegion(region))
	}
	if c.CABundle != "" {
		pem, err := os.ReadFile(c.CABundle)
		if err != nil {
			return aws.Config{}, invalid("reading the CA bundle: %w", err)
		}
		if !x509.NewCertPool().AppendCertsFromPEM(pem) {
			return aws.Config{}, invalid("CA bundle %s: no PEM certificate in it", c.CABundle)
		}
		opts = append(opts, config.WithCustomCABundle(bytes.NewReader(pem)))
	}
	cfg, err := config.LoadDefaultConfig(ctx, opts...)
	if err != nil {
		return aws.Config{}, invalid("loading the AWS SDK's configuration: %w", err)
	}
	return cfg, nil
}

func renewEarly(o *aws.CredentialsCacheOptions) { o.ExpiryWindow = time.Minute }

func assume(cfg aws.Config, roleARN, externalID string) aws.CredentialsProvider {
	role := stscreds.NewAssumeRoleProvider(sts.NewFromConfig(cfg), roleARN, func(o *stscreds.AssumeRoleOptions) {
		o.RoleSessionName = "kube-kek"
		if externalID != "" {
			o.ExternalID = &externalID
		}
	})
	return aws.NewCredentialsCache(role, renewEarly)
}

// staticNote warns of credentials from the environment or a file, which are
// either long-lived or end without anyone to renew them. Reading them asks no one.
func staticNote(ctx context.Context, p aws.CredentialsProvider) string {
	sources := sourcesOf(p)
	if !slices.Contains(sources, aws.CredentialSourceEnvVars) && !slices.Contains(sources, aws.CredentialSourceProfile) {
		return ""
	}
	if len(sources) == 1 {
		if creds, err := p.Retrieve(ctx); err == nil && creds.SessionToken != "" {
			return "The AWS credentials are a session from the environment or a file, which nobody renews: they end. Use an instance role or a web identity."
		}
	}
	return "The AWS credentials are a static access key from the environment or a file, valid until someone revokes it. Use an instance role or a web identity."
}

// sourceOf names the source that the SDK falls back on where nothing else is set
// up, because its failure mostly means that something should have been.
func sourceOf(p aws.CredentialsProvider) string {
	if slices.Contains(sourcesOf(p), aws.CredentialSourceIMDS) {
		return " from the instance metadata service"
	}
	return ""
}

func sourcesOf(p aws.CredentialsProvider) []aws.CredentialSource {
	if sourced, ok := p.(aws.CredentialProviderSource); ok {
		return sourced.ProviderSources()
	}
	return nil
}

// checkEndpoint refuses to send plaintext keys over a network in clear. SigV4
// signs requests; it does not encrypt them.
func checkEndpoint(endpoint string) error {
	if endpoint == "" {
		return nil
	}
	u, err := url.Parse(endpoint)
	if err != nil || u.Host == "" {
		return invalid("the KMS endpoint is not a URL like https://HOST[:PORT]")
	}
	if u.User != nil {
		return invalid("the KMS endpoint %s holds credentials: KMS knows no such thing", u.Host)
	}
	ip := net.ParseIP(u.Hostname())
	loopback := u.Hostname() == "localhost" || ip != nil && ip.IsLoopback()
	if u.Scheme != "https" && (u.Scheme != "http" || !loopback) {
		return invalid("the KMS endpoint %s://%s must be https: keys would cross the network in clear", u.Scheme, u.Host)
	}
	return nil
}

// recorder tells the request ID of every answer, good or bad.
type recorder struct{ *http.Transport }

func (r recorder) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := r.Transport.RoundTrip(req)
	if err == nil {
		kek.RecordCall(req.Context(), resp.Header.Get("X-Amzn-Requestid"))
	}
	return resp, err
}

// marked tells errors of the credentials' source from those of KMS, which may
// bear the same codes: STS's AccessDenied is not KMS's word on the key.
type marked struct {
	aws.CredentialsProvider
	from string
}

func (m marked) Retrieve(ctx context.Context) (aws.Credentials, error) {
	creds, err := m.CredentialsProvider.Retrieve(ctx)
	if err != nil {
		return creds, &credentialsError{err, m.from}
	}
	return creds, nil
}

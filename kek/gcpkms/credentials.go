package gcpkms

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path"
	"strings"
	"sync"
	"time"

	"cloud.google.com/go/auth"
	"cloud.google.com/go/auth/credentials"
	"github.com/kube-kek/kube-kek/kek"
	"golang.org/x/sync/singleflight"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

const scope = "https://www.googleapis.com/auth/cloud-platform"

const (
	// renewBefore is how long before its end a token is renewed in the
	// background. The metadata server gives out the same token until its last
	// five minutes.
	renewBefore = 225 * time.Second
	// leeway is how long before its end a token is no longer used.
	leeway = 10 * time.Second
	// fetchTimeout ends a fetch that no caller's deadline ends, since it serves
	// all who wait.
	fetchTimeout = 10 * time.Second
)

// tokens keeps one access token and renews it. The SDK's own cache holds a lock
// while it fetches, which makes callers deaf to their contexts.
type tokens struct {
	file     string // of credentials; empty: the metadata server
	note     string // about credentials that are long-lived
	quota    string // the project to count calls against, which a person's login needs
	http     *http.Client
	metadata *http.Client // never by way of a proxy

	life   context.Context // of fetches, until close
	end    context.CancelFunc
	flight singleflight.Group
	mu     sync.Mutex
	token  auth.Token
}

func newTokens(file string, trust *tls.Config) (*tokens, error) {
	outside := http.DefaultTransport.(*http.Transport).Clone()
	outside.TLSClientConfig = trust
	inside := &http.Transport{DialContext: (&net.Dialer{Timeout: 2 * time.Second}).DialContext}
	life, end := context.WithCancel(context.Background())
	t := &tokens{
		life: life, end: end,
		file:     file,
		http:     &http.Client{Transport: strict{outside}, Timeout: fetchTimeout},
		metadata: &http.Client{Transport: strict{inside}, Timeout: fetchTimeout},
	}
	if file == "" {
		return t, nil
	}
	c, _, err := t.read()
	if err != nil {
		return nil, invalid("%w", err)
	}
	t.quota = c.Quota
	switch c.Type {
	case credentials.ServiceAccount:
		t.note = "The credentials are a service account's key in " + file + ", valid until someone deletes it. Use an attached service account or workload identity federation."
	case credentials.AuthorizedUser:
		t.note = "The credentials in " + file + " are a person's login, valid until that person revokes it. Use an attached service account or workload identity federation."
	}
	return t, nil
}

// credentialsFile is what is read here of a file whose format is Google's:
// https://google.aip.dev/auth/4110.
type credentialsFile struct {
	Type         credentials.CredType `json:"type"`
	Email        string               `json:"client_email"`
	Audience     string               `json:"audience"`
	Impersonates string               `json:"service_account_impersonation_url"`
	Quota        string               `json:"quota_project_id"`
}

func (t *tokens) read() (c credentialsFile, creds *auth.Credentials, err error) {
	raw, err := os.ReadFile(t.file)
	if err != nil {
		return c, nil, fmt.Errorf("reading the credentials: %w", err)
	}
	if err := json.Unmarshal(raw, &c); err != nil {
		return c, nil, fmt.Errorf("credentials file %s: not JSON", t.file)
	}
	switch c.Type {
	case credentials.ServiceAccount, credentials.AuthorizedUser:
		if info, err := os.Stat(t.file); err == nil && info.Mode().Perm()&0o004 != 0 {
			return c, nil, fmt.Errorf("credentials file %s holds a secret and is readable by everyone (mode %04o): chmod 600", t.file, info.Mode().Perm())
		}
	case credentials.ExternalAccount, credentials.ImpersonatedServiceAccount:
	default:
		return c, nil, fmt.Errorf("credentials file %s: the type %q is none of external_account, impersonated_service_account, service_account, authorized_user", t.file, c.Type)
	}
	creds, err = credentials.NewCredentialsFromJSON(c.Type, raw, &credentials.DetectOptions{
		Scopes: []string{scope}, UseSelfSignedJWT: true, Client: t.http, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return c, nil, fmt.Errorf("credentials file %s: %w", t.file, err)
	}
	return c, creds, nil
}

// authorize is the interceptor that puts a token on each request, and tells
// answers of KMS from what others said in its place.
func (t *tokens) authorize(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, call grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	token, err := t.get(ctx)
	if err != nil {
		return err
	}
	var header, trailer metadata.MD
	ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
	if t.quota != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "x-goog-user-project", t.quota)
	}
	err = call(ctx, method, req, reply, conn, append(opts[:len(opts):len(opts)], grpc.Header(&header), grpc.Trailer(&trailer))...)
	if err == nil {
		return nil
	}
	if len(header["content-type"])+len(trailer["content-type"]) == 0 {
		return &unanswered{status.Convert(err)}
	}
	if status.Code(err) == codes.Unauthenticated {
		t.forget(token)
	}
	return err
}

func (t *tokens) get(ctx context.Context) (string, error) {
	t.mu.Lock()
	token := t.token
	t.mu.Unlock()
	left := time.Until(token.Expiry)
	if left > renewBefore {
		return token.Value, nil
	}
	fetched := t.flight.DoChan("", t.fetch)
	if left > leeway {
		return token.Value, nil // which the fetch replaces when it ends
	}
	select {
	case got := <-fetched:
		if got.Err != nil {
			return "", got.Err
		}
		return got.Val.(string), nil
	case <-ctx.Done():
		return "", &credentialsError{kek.Unavailable, fmt.Errorf("no answer: %w", ctx.Err())}
	}
}

func (t *tokens) fetch() (any, error) {
	ctx, cancel := context.WithTimeout(t.life, fetchTimeout)
	defer cancel()
	from := t.fromMetadata
	if t.file != "" {
		from = t.fromFile
	}
	token, err := from(ctx)
	if err != nil {
		return "", asCredentialsError(err)
	}
	// The wall clock goes on while a machine sleeps, the monotonic one does not.
	token.Expiry = token.Expiry.Round(0)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.token = *token
	return token.Value, nil
}

func (t *tokens) close() {
	t.end()
	t.http.CloseIdleConnections()
	t.metadata.CloseIdleConnections()
}

// forget makes the next call fetch a token, if this one is still in use.
func (t *tokens) forget(token string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.token.Value == token {
		t.token = auth.Token{}
	}
}

func (t *tokens) fromFile(ctx context.Context) (*auth.Token, error) {
	_, creds, err := t.read()
	if err != nil {
		return nil, err
	}
	return creds.Token(ctx)
}

func (t *tokens) fromMetadata(ctx context.Context) (*auth.Token, error) {
	var answer struct {
		Token   string `json:"access_token"`
		Seconds int    `json:"expires_in"`
	}
	body, err := t.ask(ctx, "token?scopes="+scope)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(body, &answer); err != nil || answer.Token == "" || answer.Seconds <= 0 {
		return nil, errors.New("the metadata server's answer holds no token")
	}
	return &auth.Token{Value: answer.Token, Expiry: time.Now().Add(time.Duration(answer.Seconds) * time.Second)}, nil
}

// ask asks the metadata server about the machine's service account:
// https://cloud.google.com/compute/docs/metadata/predefined-metadata-keys.
func (t *tokens) ask(ctx context.Context, what string) ([]byte, error) {
	host := cmp.Or(os.Getenv("GCE_METADATA_HOST"), "169.254.169.254")
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+host+"/computeMetadata/v1/instance/service-accounts/default/"+what, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Metadata-Flavor", "Google")
	resp, err := t.metadata.Do(req)
	var no *refused
	switch {
	case errors.As(err, &no) && no.status == http.StatusNotFound:
		return nil, fmt.Errorf("the metadata server at %s knows no service account of this machine: attach one: %w", host, no)
	case errors.As(err, &no):
		return nil, fmt.Errorf("the metadata server at %s: %w", host, no)
	case err != nil:
		// Mostly a machine elsewhere, which was given no credentials.
		return nil, &credentialsError{kek.Unauthenticated, fmt.Errorf("no credentials file is named, and the metadata server at %s does not answer: %w", host, err)}
	}
	defer resp.Body.Close()
	if resp.Header.Get("Metadata-Flavor") != "Google" {
		return nil, fmt.Errorf("what answers at %s is not Google's metadata server", host)
	}
	return io.ReadAll(io.LimitReader(resp.Body, 1<<20))
}

func (t *tokens) principal(ctx context.Context) (string, error) {
	if t.file == "" {
		email, err := t.ask(ctx, "email")
		if err != nil {
			return "", asCredentialsError(err)
		}
		return strings.TrimSpace(string(email)), nil
	}
	c, _, err := t.read()
	switch {
	case err != nil:
		return "", asCredentialsError(err)
	case c.Impersonates != "":
		email, _, _ := strings.Cut(path.Base(c.Impersonates), ":")
		return email, nil
	case c.Type == credentials.ExternalAccount:
		return "a workload identity of " + strings.TrimPrefix(c.Audience, "//iam.googleapis.com/"), nil
	case c.Type == credentials.AuthorizedUser:
		return "a person's login", nil
	}
	return c.Email, nil
}

// strict makes an error of every HTTP answer that is not a success, redirects
// among them: the SDK would quote its body.
type strict struct{ *http.Transport }

func (s strict) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := s.Transport.RoundTrip(req)
	if err != nil || resp.StatusCode/100 == 2 {
		return resp, err
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
	return nil, &refused{resp.StatusCode, words(body)}
}

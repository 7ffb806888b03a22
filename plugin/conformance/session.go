package conformance

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	v2 "k8s.io/kms/apis/v2"
)

// callTimeout is what kube-apiserver gives a call unless its
// EncryptionConfiguration says otherwise.
const callTimeout = 3 * time.Second

// checkTimeout ends a check that is no story.
const checkTimeout = 2 * time.Minute

// check is one line of the table.
type check struct {
	Info

	// unless names checks after whose failure this one has nothing to say.
	unless []string

	// run returns what was seen. The error is a breach of the demand, unless it
	// is a skip.
	run func(context.Context, *session) (seen string, err error)
}

// skip is the error of a check that could not be made.
type skip string

func (s skip) Error() string { return string(s) }

func skipf(format string, args ...any) error { return skip(fmt.Sprintf(format, args...)) }

// breachf is the error of a check whose demand is not met.
func breachf(format string, args ...any) error { return fmt.Errorf(format, args...) }

// session is one run against one endpoint.
type session struct {
	target
	o        Options
	conn     *client // the one connection that kube-apiserver would have
	rand     *rand.Rand
	report   Report
	secrets  *secrets // what no answer may show
	messages messages
	broken   error // why not even one seed can be encrypted and decrypted, nil if it can

	hookErrs []error // of hooks, which are no verdict on the plugin

	rotated   once[*rotation]
	restarted once[*restart]
	outage    once[*outage]
	disabled  once[*disabling]
}

// once keeps what a story's event brought, for the checks that judge it.
type once[T any] struct {
	done  bool
	value T
	err   error
}

func (o *once[T]) do(f func() (T, error)) (T, error) {
	if !o.done {
		o.value, o.err = f()
		o.done = true
	}
	return o.value, o.err
}

func newSession(ctx context.Context, endpoint string, o Options) (*session, error) {
	t, err := parseEndpoint(endpoint)
	if err != nil {
		return nil, err
	}
	s := &session{target: t, o: o, secrets: newSecrets()}
	s.report = Report{Endpoint: endpoint, Started: time.Now(), Seed: o.Seed}
	raw, err := t.dialRaw(ctx)
	if err != nil {
		return nil, fmt.Errorf("connecting to %s: %w: is the plugin running, and may this user connect?", endpoint, err)
	}
	raw.Close()
	if s.conn, err = s.dial(); err != nil {
		return nil, err
	}
	s.seedFor("start")
	s.broken = s.firstRecord(ctx)
	return s, nil
}

// firstRecord tells whether the plugin does anything at all.
func (s *session) firstRecord(ctx context.Context) error {
	st, err := s.conn.Status(ctx)
	if err != nil {
		return err
	}
	s.report.KeyID = st.GetKeyId()
	rec, err := s.encrypt(ctx, s.conn, s.seed())
	if err != nil {
		return err
	}
	return s.opens(ctx, s.conn, rec)
}

func (s *session) close() { s.conn.Close() }

func (s *session) run(ctx context.Context) (Report, error) {
	failed := map[string]bool{}
	for _, c := range checks {
		if s.o.Run != nil && !s.o.Run.MatchString(c.Name) {
			continue
		}
		if ctx.Err() != nil {
			break
		}
		if s.o.Begin != nil {
			s.o.Begin(c.Info)
		}
		r := s.judge(ctx, c, failed)
		if ctx.Err() != nil && r.Verdict == Fail {
			break // it was not the plugin that ended this check
		}
		failed[c.Name] = r.Verdict == Fail
		s.report.Results = append(s.report.Results, r)
		if s.o.Progress != nil {
			s.o.Progress(r)
		}
	}
	s.report.Duration = time.Since(s.report.Started)
	if err := errors.Join(s.hookErrs...); err != nil {
		return s.report, fmt.Errorf("conformance: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return s.report, fmt.Errorf("conformance: ended before all checks were made: %w", err)
	}
	if s.broken != nil && s.report.Count(Fail) == 0 {
		// Only checks were chosen that have nothing to say then; that is no success.
		return s.report, fmt.Errorf("conformance: the plugin does not work: %w", s.broken)
	}
	return s.report, nil
}

// judge runs one check.
func (s *session) judge(ctx context.Context, c check, failed map[string]bool) Result {
	s.seedFor(c.Name)
	start := time.Now()
	seen, err := "", s.missing(c, failed)
	if err == nil {
		seen, err = bounded(ctx, c, s)
	}
	r := Result{Name: c.Name, Level: c.Level, Source: c.Source, About: c.About, Verdict: Pass, Seen: seen}
	var skipped skip
	if errors.As(err, &skipped) {
		r.Verdict, r.Seen = Skip, skipped.Error()
	} else if err != nil {
		r.Verdict, r.Seen = Fail, err.Error()
	}
	r.Seen = printable(r.Seen)
	r.Duration = time.Since(start)
	return r
}

// bounded runs a check. Stories bound themselves, by the time that the plugin is
// given for what it must see.
func bounded(ctx context.Context, c check, s *session) (string, error) {
	if c.Story() {
		return c.run(ctx, s)
	}
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	seen, err := c.run(ctx, s)
	if err != nil && ctx.Err() != nil {
		err = fmt.Errorf("ended after %s: %w", checkTimeout, err)
	}
	return seen, err
}

// missing says what keeps a check from being made.
func (s *session) missing(c check, failed map[string]bool) error {
	var hooks []string
	given := s.o.Hooks.byName()
	for _, name := range c.Needs {
		if given[name] == nil {
			hooks = append(hooks, name)
		}
	}
	if len(hooks) > 0 {
		return skipf("needs a hook that was not given: %s", strings.Join(hooks, ", "))
	}
	unless := c.unless
	if c.Story() {
		unless = append(slices.Clone(accepted), unless...)
	}
	for _, name := range unless {
		if failed[name] {
			return skipf("says nothing while %s fails", name)
		}
	}
	if s.broken != nil && !slices.Contains(basics, c.Name) {
		return skipf("the plugin did not encrypt and decrypt one seed at the start, so there is nothing to check: %v", s.broken)
	}
	return nil
}

// seedFor makes the random source that of a check, so that it sends the same
// whichever checks run before it.
func (s *session) seedFor(name string) {
	s.rand = rand.New(rand.NewChaCha8(sha256.Sum256(binary.BigEndian.AppendUint64([]byte(name+"\x00"), s.o.Seed))))
}

// few returns n, or a twentieth of it where the run is quick.
func (s *session) few(n int) int {
	if s.o.Quick {
		return max(4, n/20)
	}
	return n
}

// seed returns 32 bytes as kube-apiserver's DEK seeds have, but of letters and
// digits: whatever a plugin's messages do to unprintable bytes, these are found
// in them.
func (s *session) seed() []byte { return s.letters(32) }

func (s *session) letters(n int) []byte {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
	b := make([]byte, n)
	for i := range b {
		b[i] = alphabet[s.rand.IntN(len(alphabet))]
	}
	s.secrets.add(b)
	return b
}

// bytes returns n bytes of any value.
func (s *session) bytes(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(s.rand.Uint32())
	}
	s.secrets.add(b)
	return b
}

// record is what kube-apiserver keeps of one Encrypt, with the seed that it must
// give back.
type record struct {
	seed []byte
	*v2.EncryptResponse
}

// request is the Decrypt of a record, for a check to change.
func (r record) request() *v2.DecryptRequest {
	annotations := map[string][]byte{}
	for name, value := range r.Annotations {
		annotations[name] = slices.Clone(value)
	}
	return &v2.DecryptRequest{Ciphertext: slices.Clone(r.Ciphertext), KeyId: r.KeyId, Annotations: annotations}
}

func (s *session) encrypt(ctx context.Context, c *client, seed []byte) (record, error) {
	resp, err := c.Encrypt(ctx, &v2.EncryptRequest{Plaintext: seed})
	if err != nil {
		return record{}, fmt.Errorf("an Encrypt of %d bytes answered %w", len(seed), err)
	}
	return record{seed, resp}, nil
}

// records encrypts n seeds of their own.
func (s *session) records(ctx context.Context, n int) ([]record, error) {
	seeds := make([][]byte, n)
	for i := range seeds {
		seeds[i] = s.seed()
	}
	return s.encryptAll(ctx, seeds)
}

// opens holds Decrypt of a record against its seed.
func (s *session) opens(ctx context.Context, c *client, r record) error {
	resp, err := c.Decrypt(ctx, r.request())
	if err != nil {
		return fmt.Errorf("a Decrypt of what Encrypt returned (key_id %q, annotations echoed) answered %w", r.KeyId, err)
	}
	if string(resp.Plaintext) != string(r.seed) {
		return fmt.Errorf("a Decrypt of what Encrypt returned gave %d other bytes than the %d that were encrypted", len(resp.Plaintext), len(r.seed))
	}
	return nil
}

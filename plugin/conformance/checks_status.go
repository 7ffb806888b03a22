package conformance

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	v2 "k8s.io/kms/apis/v2"
)

var statusChecks = []check{
	{Info: Info{
		Name: "status-answers", Level: Must, Source: grpcClient,
		About: "Status is served by gRPC on the unix socket and answers within the 3 s that kube-apiserver gives a call.",
	}, run: statusAnswers},
	{Info: Info{
		Name: "status-version", Level: Must, Source: api + "; " + probe,
		About: "Status answers version v2 (or its equal v2beta1), the same each time.",
	}, unless: []string{"status-answers"}, run: statusVersion},
	{Info: Info{
		Name: "status-version-v2", Level: Advice, Source: api,
		About: "The version is v2, which the API recommends over v2beta1.",
	}, unless: []string{"status-answers"}, run: statusVersionV2},
	{Info: Info{
		Name: "status-healthz", Level: Must, Source: api + "; " + probe,
		About: "Status of a plugin that is well answers healthz \"ok\", in these two letters.",
	}, unless: []string{"status-answers"}, run: statusHealthz},
	{Info: Info{
		Name: "key-id-size", Level: Must, Source: api + "; " + envelope + " ValidateKeyID",
		About: "The key_id of Status and of Encrypt has 1 to 1024 bytes.",
	}, run: keyIDSize},
	{Info: Info{
		Name: "key-id-constant", Level: Must, Source: kep + ", Rotation; " + probe,
		About: "The key_id does not change while the KEK does not: each change makes every record stale and costs an Encrypt.",
	}, run: keyIDConstant},
	{Info: Info{
		Name: "key-id-agrees", Level: Must, Source: probe + " rotateDEKOnKeyIDChange",
		About: "Status and Encrypt answer the same key_id; kube-apiserver throws away an Encrypt that disagrees.",
	}, run: keyIDAgrees},
	{Info: Info{
		Name: "key-id-public", Level: Must, Source: kep + ", Key_id and rotation: key_id is public data",
		About: "The key_id holds no credential and no plaintext: it is stored in clear and is in logs.",
	}, run: keyIDPublic},
	{Info: Info{
		Name: "status-cheap", Level: Should, Source: api + ": this API is meant to be polled; " + docs,
		About: "Status answers 100 times a second without a failure, with a median below 10 ms.",
	}, run: statusCheap},
	{Info: Info{
		Name: "status-kms-calls", Level: Should, Source: kep + ", Status; " + ours, Needs: []string{"kms-calls"},
		About: "Status does not ask the KMS each time.",
	}, run: statusKMSCalls},
}

func statusAnswers(ctx context.Context, s *session) (string, error) {
	var st *v2.StatusResponse
	d, err := took(func() (err error) { st, err = s.conn.Status(ctx); return err })
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("Status answered version %q, healthz %q, key_id %q in %s", st.Version, st.Healthz, st.KeyId, d.Round(time.Microsecond)), nil
}

// statuses polls over two connections.
func (s *session) statuses(ctx context.Context, n int) ([]*v2.StatusResponse, error) {
	var all []*v2.StatusResponse
	err := s.with(func(other *client) error {
		for i := range n {
			c := s.conn
			if i%2 == 1 {
				c = other
			}
			st, err := c.Status(ctx)
			if err != nil {
				return err
			}
			all = append(all, st)
		}
		return nil
	})
	return all, err
}

// distinct returns the different values in order of appearance.
func distinct[T any](all []T, field func(T) string) []string {
	var out []string
	for _, v := range all {
		if f := field(v); !slices.Contains(out, f) {
			out = append(out, f)
		}
	}
	return out
}

func statusVersion(ctx context.Context, s *session) (string, error) {
	all, err := s.statuses(ctx, s.few(100))
	if err != nil {
		return "", err
	}
	versions := distinct(all, (*v2.StatusResponse).GetVersion)
	for _, v := range versions {
		if v != "v2" && v != "v2beta1" {
			return "", breachf("Status answered version %q; kube-apiserver takes only v2 and v2beta1, and calls the plugin unhealthy", v)
		}
	}
	if len(versions) > 1 {
		return "", breachf("%d calls of Status answered the versions %q; it may not change after the first answer", len(all), versions)
	}
	return fmt.Sprintf("%d calls of Status answered version %q", len(all), versions[0]), nil
}

func statusVersionV2(ctx context.Context, s *session) (string, error) {
	st, err := s.conn.Status(ctx)
	if err != nil {
		return "", err
	}
	if st.Version != "v2" {
		return "", breachf("Status answered version %q; answer \"v2\"", st.Version)
	}
	return "Status answered version \"v2\"", nil
}

func statusHealthz(ctx context.Context, s *session) (string, error) {
	all, err := s.statuses(ctx, s.few(20))
	if err != nil {
		return "", err
	}
	for _, st := range all {
		if st.Healthz != "ok" {
			return "", breachf("Status answered healthz %q; anything but \"ok\" is unhealthy, and kube-apiserver is not ready", st.Healthz)
		}
	}
	return fmt.Sprintf("%d calls of Status answered healthz \"ok\"", len(all)), nil
}

func keyIDSize(ctx context.Context, s *session) (string, error) {
	st, err := s.conn.Status(ctx)
	if err != nil {
		return "", err
	}
	rec, err := s.encrypt(ctx, s.conn, s.seed())
	if err != nil {
		return "", err
	}
	for method, id := range map[string]string{"Status": st.KeyId, "Encrypt": rec.KeyId} {
		if len(id) < 1 || len(id) > 1024 {
			return "", breachf("%s answered a key_id of %d bytes (%.80q); kube-apiserver takes 1 to 1024", method, len(id), id)
		}
	}
	return fmt.Sprintf("key_id of %d bytes: %q", len(st.KeyId), st.KeyId), nil
}

func keyIDConstant(ctx context.Context, s *session) (string, error) {
	all, err := s.statuses(ctx, s.few(100))
	if err != nil {
		return "", err
	}
	records, err := s.records(ctx, s.few(50))
	if err != nil {
		return "", err
	}
	if ids := distinct(all, (*v2.StatusResponse).GetKeyId); len(ids) > 1 {
		return "", breachf("%d calls of Status in a row answered %d different key_ids: %q", len(all), len(ids), firsts(ids, 4))
	}
	if ids := distinct(records, func(r record) string { return r.KeyId }); len(ids) > 1 {
		return "", breachf("%d calls of Encrypt in a row answered %d different key_ids: %q", len(records), len(ids), firsts(ids, 4))
	}
	return fmt.Sprintf("%d calls of Status and %d of Encrypt, over two connections: one key_id each", len(all), len(records)), nil
}

func firsts[T any](all []T, n int) []T { return all[:min(n, len(all))] }

func keyIDAgrees(ctx context.Context, s *session) (string, error) {
	for range 3 { // a rotation may happen to come in between
		before, err := s.conn.Status(ctx)
		if err != nil {
			return "", err
		}
		rec, err := s.encrypt(ctx, s.conn, s.seed())
		if err != nil {
			return "", err
		}
		after, err := s.conn.Status(ctx)
		if err != nil {
			return "", err
		}
		if before.KeyId != after.KeyId {
			continue
		}
		if rec.KeyId != before.KeyId {
			return "", breachf("Status answered key_id %q before and after an Encrypt that answered %q; kube-apiserver throws that Encrypt away and cannot write once its old seed ends (3 min)", before.KeyId, rec.KeyId)
		}
		return fmt.Sprintf("Status, Encrypt and Status again answered %q", rec.KeyId), nil
	}
	return "", skipf("the key_id changed at each look; see key-id-constant")
}

func keyIDPublic(ctx context.Context, s *session) (string, error) {
	st, err := s.conn.Status(ctx)
	if err != nil {
		return "", err
	}
	rec, err := s.encrypt(ctx, s.conn, s.seed())
	if err != nil {
		return "", err
	}
	for method, id := range map[string]string{"Status": st.KeyId, "Encrypt": rec.KeyId} {
		if what, found := looksSecret(id); found {
			return "", breachf("the key_id of %s holds what looks like %s; it is stored in clear in etcd and shows in logs (the value is not repeated here)", method, what)
		}
		if how, shown := s.secrets.shownIn([]byte(id)); shown {
			return "", breachf("the key_id of %s holds a part of the plaintext %s", method, how)
		}
	}
	return "nothing in the key_id looks like a credential or is a plaintext", nil
}

func statusCheap(ctx context.Context, s *session) (string, error) {
	n := s.few(300)
	var mu sync.Mutex
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	err := inParallel(n, n, func(int) error {
		mu.Lock()
		<-tick.C // one at a time gets it: 100 a second, however long each takes
		mu.Unlock()
		_, err := s.conn.Status(ctx)
		return err
	})
	if err != nil {
		return "", breachf("of %d calls at 100 a second one failed: %w", n, err)
	}
	seen, err := s.latency(ctx, "Status", 10*time.Millisecond, func(int) error { _, err := s.conn.Status(ctx); return err })
	if err != nil {
		return "", breachf("%w; answer from memory: kube-apiserver polls, and asks for each /readyz as well", err)
	}
	return fmt.Sprintf("%d calls at 100 a second were answered; %s", n, seen), nil
}

func median(times []time.Duration) time.Duration {
	sorted := slices.Sorted(slices.Values(times))
	return sorted[len(sorted)/2].Round(time.Microsecond)
}

func statusKMSCalls(ctx context.Context, s *session) (string, error) {
	const n = 100
	calls, idle, err := s.kmsCalls(ctx, func() error { _, err := s.statuses(ctx, n); return err })
	if err != nil {
		return "", err
	}
	seen := fmt.Sprintf("%d calls of Status caused %d calls to the KMS, and as long a time without them %d", n, calls, idle)
	if calls > idle+n/2 {
		return "", breachf("%s; let the background ask", seen)
	}
	return seen, nil
}

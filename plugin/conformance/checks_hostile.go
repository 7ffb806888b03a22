package conformance

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
	v2 "k8s.io/kms/apis/v2"
)

var hostileChecks = []check{
	{Info: Info{
		Name: "deadline-honoured", Level: Should, Source: "gRPC over HTTP/2: grpc-timeout; " + grpcClient,
		About: "A call whose deadline has passed is answered by then, and not worked on for longer.",
	}, run: deadlineHonoured},
	{Info: Info{
		Name: "cancelled-calls", Level: Should, Source: "gRPC over HTTP/2: RST_STREAM; " + ours,
		About: "Calls that the client gives up are let go: after hundreds of them the plugin serves as before.",
	}, unless: []string{"concurrent-decrypts"}, run: cancelledCalls},
	{Info: Info{
		Name: "half-open-client", Level: Should, Source: ours,
		About: "Clients that connect and do not go on, or do not read, keep nobody else waiting.",
	}, run: halfOpenClient},
	{Info: Info{
		Name: "garbage", Level: Must, Source: ours,
		About: "Bytes that are no HTTP/2 end their connection at most.",
	}, run: garbage},
	{Info: Info{
		Name: "oversized", Level: Must, Source: api + "; " + ours,
		About: "Requests beyond the API's limits, up to megabytes, are refused where they are a Decrypt, and end nothing.",
	}, run: oversized},
	{Info: Info{
		Name: "unknown-method", Level: Should, Source: "gRPC status codes: UNIMPLEMENTED",
		About: "A method that does not exist answers Unimplemented.",
	}, run: unknownMethod},
}

func deadlineHonoured(ctx context.Context, s *session) (string, error) {
	r, err := s.oneRecord(ctx)
	if err != nil {
		return "", err
	}
	foreign := r.request()
	foreign.KeyId = "no-such-key"
	const timeout, grace, patience = 300 * time.Millisecond, time.Second, 5 * time.Second
	slowest := time.Duration(0)
	for _, call := range []struct {
		what, method string
		req          proto.Message
	}{
		{"Status", "Status", &v2.StatusRequest{}},
		{"Encrypt", "Encrypt", &v2.EncryptRequest{Plaintext: s.seed()}},
		{"Decrypt", "Decrypt", r.request()},
		{"Decrypt with an unknown key_id", "Decrypt", foreign},
	} {
		a, err := s.rawCall(ctx, call.method, call.req, timeout, patience)
		if err != nil {
			return "", breachf("%s with a deadline of %s had no answer after %s (%v); the plugin must stop when the call's context ends", call.what, timeout, a.took.Round(time.Millisecond), err)
		}
		if a.took > timeout+grace {
			return "", breachf("%s with a deadline of %s was answered (%s) after %s; the plugin must stop when the call's context ends", call.what, timeout, a.code, a.took.Round(time.Millisecond))
		}
		slowest = max(slowest, a.took)
	}
	return fmt.Sprintf("Status, Encrypt and Decrypt with a deadline of %s were answered by the plugin itself, the slowest after %s", timeout, slowest.Round(time.Microsecond)), nil
}

func cancelledCalls(ctx context.Context, s *session) (string, error) {
	r, err := s.oneRecord(ctx)
	if err != nil {
		return "", err
	}
	n := s.few(1000)
	seeds, pauses := make([][]byte, n), make([]time.Duration, n)
	for i := range n {
		seeds[i], pauses[i] = s.seed(), time.Duration(s.rand.IntN(2000))*time.Microsecond
	}
	ended := 0
	err = s.with(func(c *client) error {
		done := make(chan error, n)
		for i := range n {
			go func() {
				ctx, cancel := context.WithTimeout(ctx, callTimeout)
				time.AfterFunc(pauses[i], cancel)
				_, err := c.Encrypt(ctx, &v2.EncryptRequest{Plaintext: seeds[i]})
				if i%2 == 1 {
					_, err = c.Decrypt(ctx, r.request())
				}
				done <- err
			}()
		}
		for range n {
			if status.Code(<-done) == codes.Canceled {
				ended++
			}
		}
		return s.opens(ctx, c, r)
	})
	if err == nil {
		err = s.serves(ctx)
	}
	if err != nil {
		return "", breachf("after %d cancelled calls: %w", n, err)
	}
	return fmt.Sprintf("%d calls were given up after 0 to 2 ms, %d of them before their answer; the plugin serves as before", n, ended), nil
}

func halfOpenClient(ctx context.Context, s *session) (string, error) {
	kinds := halfOpen()
	for _, kind := range slices.Sorted(maps.Keys(kinds)) {
		if err := s.besides(ctx, kinds[kind]); err != nil {
			return "", breachf("while 5 clients are connected of which each %s, for others: %w", kind, err)
		}
	}
	return fmt.Sprintf("others were served while 5 clients each %s", strings.Join(slices.Sorted(maps.Keys(kinds)), ", ")), nil
}

// besides holds connections that sent what and wait, while others call.
func (s *session) besides(ctx context.Context, what []byte) error {
	for range 5 {
		conn, err := s.dialRaw(ctx)
		if err != nil {
			return err
		}
		defer conn.Close()
		conn.SetWriteDeadline(time.Now().Add(time.Second))
		conn.Write(what) // a plugin that does not take it may
	}
	return s.serves(ctx)
}

func garbage(ctx context.Context, s *session) (string, error) {
	noise := make([]byte, 64<<10)
	rand.NewChaCha8([32]byte{byte(s.rand.Uint32())}).Read(noise)
	kinds := map[string][]byte{
		"random bytes":                        noise,
		"an HTTP/1.1 request":                 []byte("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
		"a TLS client hello":                  []byte("\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03" + string(noise[:160])),
		"HTTP/2's preface and random frames":  append([]byte(preface+settingsFrame), noise[:4096]...),
		"a frame that claims to be of 16 MiB": []byte(preface + settingsFrame + "\xff\xff\xff\x00\x00\x00\x00\x00\x01"),
	}
	for _, kind := range slices.Sorted(maps.Keys(kinds)) {
		if err := s.sendRaw(ctx, kinds[kind]); err != nil {
			return "", err
		}
		if err := s.serves(ctx); err != nil {
			return "", breachf("after a client sent %s, for others: %w", kind, err)
		}
	}
	return "others were served after " + strings.Join(slices.Sorted(maps.Keys(kinds)), ", "), nil
}

// sendRaw sends bytes and waits a moment for what the plugin makes of them.
func (s *session) sendRaw(ctx context.Context, b []byte) error {
	conn, err := s.dialRaw(ctx)
	if err != nil {
		return breachf("connecting: %w", err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(200 * time.Millisecond))
	conn.Write(b) // the plugin may end the connection before it has all
	for buf := make([]byte, 4096); err == nil; {
		_, err = net.Conn(conn).Read(buf)
	}
	return nil
}

func oversized(ctx context.Context, s *session) (string, error) {
	r, err := s.oneRecord(ctx)
	if err != nil {
		return "", err
	}
	var variants []variant
	add := func(what string, edit func(*v2.DecryptRequest)) {
		req := r.request()
		edit(req)
		variants = append(variants, variant{what, req})
	}
	sizes := []int{1025, 64 << 10, 1 << 20, 5 << 20}
	if s.o.Quick {
		sizes = []int{1025, 64 << 10}
	}
	for _, n := range sizes {
		add(fmt.Sprintf("a ciphertext of %d bytes", n), func(q *v2.DecryptRequest) { q.Ciphertext = make([]byte, n) })
		add(fmt.Sprintf("a key_id of %d bytes", n), func(q *v2.DecryptRequest) { q.KeyId = strings.Repeat("k", n) })
	}
	for _, v := range variants {
		if err := s.withAlive("a Decrypt with "+v.what, func(c *client) error { return refuses(ctx, c, r, v) }); err != nil {
			return "", err
		}
	}
	for _, n := range []int{64 << 10, sizes[len(sizes)-1]} {
		// Whether these are taken is for round-trip-sizes to say.
		d, err := took(func() error {
			return s.with(func(c *client) error { _, err := s.encrypt(ctx, c, make([]byte, n)); return err })
		})
		if hung(d, err) {
			return "", breachf("an Encrypt of %d bytes was not answered within %s", n, callTimeout)
		}
		many := r.request()
		for i := range n / 64 {
			many.Annotations[fmt.Sprintf("a%d.example.com", i)] = make([]byte, 48)
		}
		d, err = took(func() error {
			return s.with(func(c *client) error { _, err := c.Decrypt(ctx, many); return err })
		})
		if hung(d, err) {
			return "", breachf("a Decrypt with %d annotations was not answered within %s", n/64, callTimeout)
		}
	}
	if err := s.serves(ctx); err != nil {
		return "", breachf("after oversized requests: %w", err)
	}
	return fmt.Sprintf("%d Decrypts with a ciphertext or key_id of up to %d bytes were refused, and the plugin serves as before", len(variants), sizes[len(sizes)-1]), nil
}

func unknownMethod(ctx context.Context, s *session) (string, error) {
	for _, method := range []string{service + "NoSuchMethod", "/no.such.Service/Status"} {
		err := s.with(func(c *client) error {
			return c.conn.Invoke(ctx, method, &emptypb.Empty{}, &emptypb.Empty{})
		})
		if code := status.Code(err); code != codes.Unimplemented {
			return "", breachf("the method %s answered %s, not Unimplemented", method, code)
		}
	}
	if err := s.serves(ctx); err != nil {
		return "", breachf("after calls of unknown methods: %w", err)
	}
	return "a method and a service that do not exist answered Unimplemented", nil
}

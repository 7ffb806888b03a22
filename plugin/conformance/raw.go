package conformance

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
)

// What an HTTP/2 client sends first (RFC 9113, section 3.4).
const (
	preface       = http2.ClientPreface
	settingsFrame = "\x00\x00\x00\x04\x00\x00\x00\x00\x00"
)

const service = "/v2.KeyManagementService/"

// answer is how a gRPC call over raw HTTP/2 ended.
type answer struct {
	code codes.Code
	took time.Duration
}

// rawCall makes a call with a grpc-timeout and waits for the server's own answer,
// where gRPC's client would stop waiting at that time by itself.
func (t target) rawCall(ctx context.Context, method string, req proto.Message, timeout, patience time.Duration) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	transport := &http.Transport{
		Protocols:   new(http.Protocols),
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return t.dialRaw(ctx) },
	}
	transport.Protocols.SetUnencryptedHTTP2(true)
	defer transport.CloseIdleConnections()

	message, err := proto.Marshal(req)
	if err != nil {
		return answer{}, err
	}
	body := append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message))), message...)
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://localhost"+service+method, bytes.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	r.Header.Set("Content-Type", "application/grpc")
	r.Header.Set("TE", "trailers")
	r.Header.Set("Grpc-Timeout", fmt.Sprintf("%dm", timeout.Milliseconds()))

	start := time.Now()
	resp, err := transport.RoundTrip(r)
	if err != nil {
		return answer{took: time.Since(start)}, err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return answer{took: time.Since(start)}, err
	}
	a := answer{codes.Unknown, time.Since(start)}
	for _, h := range []http.Header{resp.Header, resp.Trailer} {
		if n, err := strconv.Atoi(h.Get("Grpc-Status")); err == nil {
			a.code = codes.Code(n)
		}
	}
	return a, nil
}

// statusHeaders asks for Status, in HPACK.
func statusHeaders() []byte {
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	for _, h := range [][2]string{
		{":method", "POST"}, {":scheme", "http"}, {":path", service + "Status"}, {":authority", "localhost"},
		{"content-type", "application/grpc"}, {"te", "trailers"},
	} {
		e.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]})
	}
	return b.Bytes()
}

// halfOpen are the ways of a client to connect and not go on.
func halfOpen() map[string][]byte {
	var unread, begun bytes.Buffer
	for _, b := range []*bytes.Buffer{&unread, &begun} {
		b.WriteString(preface + settingsFrame)
	}
	f := http2.NewFramer(&begun, nil)
	f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: statusHeaders(), EndHeaders: true})
	f.WriteData(1, false, []byte{0, 0, 0})
	f = http2.NewFramer(&unread, nil)
	for i := range uint32(50) {
		f.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*i + 1, BlockFragment: statusHeaders(), EndHeaders: true})
		f.WriteData(2*i+1, true, []byte{0, 0, 0, 0, 0})
	}
	return map[string][]byte{
		"says nothing":                        nil,
		"ends within HTTP/2's preface":        []byte(preface[:10]),
		"sends no settings":                   []byte(preface),
		"sends half of a request":             begun.Bytes(),
		"sends 50 requests and reads nothing": unread.Bytes(),
	}
}

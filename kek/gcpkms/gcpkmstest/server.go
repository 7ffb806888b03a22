// Package gcpkmstest is a server that stands in for Google Cloud KMS in tests:
// the real gRPC service over TLS, under a CA of its own, for any SDK. It is as
// strict as Google where a client could be wrong: tokens and their end,
// permissions, purposes, the states of versions, additional authenticated data,
// checksums. Faults come on demand, and every call is counted.
//
// Beside it are two handlers for where tokens come from: [Server.Metadata], the
// metadata server of a machine, and [Server.STS], the token exchange of workload
// identity federation.
//
// Keys live in memory and end with the [Server]. Where it knowingly differs from
// Google, TestDifferencesFromGoogle lists and shows it.
//
// It is not for production: it guards nothing.
package gcpkmstest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"path"
	"sync"
	"time"

	"cloud.google.com/go/kms/apiv1/kmspb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// Config describes a [Server]. The zero value is ready to use.
type Config struct {
	KeyRing string // "projects/p/locations/europe-west1/keyRings/r" if empty

	// TokenLifetime is that of tokens that are given out from now on; an hour if
	// it is 0. [Server.SetTokenLifetime] changes it.
	TokenLifetime time.Duration
}

// Server is the stand-in. Its methods may be called at any time, also while
// requests are under way.
type Server struct {
	kmspb.UnimplementedKeyManagementServiceServer
	keyRing  string
	ca       []byte
	listener *listener
	grpc     *grpc.Server

	mu         sync.Mutex
	lifetime   time.Duration
	principals map[string]*principal // by name
	tokens     map[string]issued     // by token
	keys       map[string]*key       // by resource name
	faults     []*Fault
	unhang     chan struct{} // closed when the faults change
	calls      []*Call
}

// Start returns a server that knows no principal and no key, and serves it on a
// free loopback port. The caller closes it.
func Start(c Config) (*Server, error) {
	if c.KeyRing == "" {
		c.KeyRing = "projects/p/locations/europe-west1/keyRings/r"
	}
	if c.TokenLifetime == 0 {
		c.TokenLifetime = time.Hour
	}
	ca, leaf, err := certificates()
	if err != nil {
		return nil, fmt.Errorf("making certificates: %w", err)
	}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listening: %w", err)
	}
	s := &Server{
		keyRing:    c.KeyRing,
		ca:         ca,
		listener:   &listener{Listener: tcp, open: map[string]net.Conn{}},
		lifetime:   c.TokenLifetime,
		principals: map[string]*principal{},
		tokens:     map[string]issued{},
		keys:       map[string]*key{},
		unhang:     make(chan struct{}),
	}
	s.grpc = grpc.NewServer(
		grpc.Creds(credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{leaf}})),
		grpc.UnaryInterceptor(s.intercept),
	)
	kmspb.RegisterKeyManagementServiceServer(s.grpc, s)
	go s.grpc.Serve(s.listener) //nolint:errcheck // it ends with Close
	return s, nil
}

// Address is the server's HOST:PORT.
func (s *Server) Address() string { return s.listener.Addr().String() }

// CA is the certificate to trust, in PEM.
func (s *Server) CA() []byte { return s.ca }

// Close ends all connections, and calls that hang.
func (s *Server) Close() {
	s.SetFault()
	s.grpc.Stop()
}

// Call is a request that was received, whatever became of it.
type Call struct {
	Method    string // "Decrypt", "ExchangeToken", …
	Principal string // the caller; empty if it was not authenticated
	Name      string // the resource of the request
	Quota     string // the project that the request asks to be counted against
	Code      codes.Code
}

// Log returns the calls since the start or the last ResetCalls, in order of
// arrival. The code of a call that is under way is OK.
func (s *Server) Log() []Call {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Call, len(s.calls))
	for i, c := range s.calls {
		out[i] = *c
	}
	return out
}

// Calls counts the calls of a method; "" counts all.
func (s *Server) Calls(method string) int { return s.CallsBy("", method) }

// CallsBy counts the calls of a method by a principal; "" counts all.
func (s *Server) CallsBy(principal, method string) int {
	n := 0
	for _, c := range s.Log() {
		if (method == "" || method == c.Method) && (principal == "" || principal == c.Principal) {
			n++
		}
	}
	return n
}

// ResetCalls forgets the calls so far.
func (s *Server) ResetCalls() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = nil
}

func (s *Server) record(c *Call) *Call {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = append(s.calls, c)
	return c
}

func (s *Server) setCode(c *Call, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.Code = status.Code(err)
}

type callerKey struct{}

// intercept authenticates, records and harms calls before a method sees them.
func (s *Server) intercept(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (reply any, err error) {
	md, _ := metadata.FromIncomingContext(ctx)
	who, refused := s.authenticate(md.Get("authorization"))
	call := &Call{Method: path.Base(info.FullMethod), Principal: who}
	if named, ok := req.(interface{ GetName() string }); ok {
		call.Name = named.GetName()
	}
	if quota := md.Get("x-goog-user-project"); len(quota) > 0 {
		call.Quota = quota[0]
	}
	s.record(call)
	defer func() { s.setCode(call, err) }()
	fault, answered, err := s.applyFault(ctx, call)
	switch {
	case answered:
		return nil, err
	case refused != nil:
		return nil, refused
	}
	reply, err = handle(context.WithValue(ctx, callerKey{}, who), req)
	if err == nil {
		fault.damage(reply)
	}
	return reply, err
}

// listener knows its connections, so that one can be cut.
type listener struct {
	net.Listener
	mu   sync.Mutex
	open map[string]net.Conn // by remote address
}

func (l *listener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open[conn.RemoteAddr().String()] = conn
	return tracked{conn, l}, nil
}

func (l *listener) cut(remote string) {
	l.mu.Lock()
	conn := l.open[remote]
	l.mu.Unlock()
	if conn != nil {
		conn.Close()
	}
}

type tracked struct {
	net.Conn
	l *listener
}

func (t tracked) Close() error {
	t.l.mu.Lock()
	delete(t.l.open, t.RemoteAddr().String())
	t.l.mu.Unlock()
	return t.Conn.Close()
}

// certificates makes a CA and a certificate of it, for the loopback interface
// and, for clients behind a proxy, for the name of KMS.
func certificates() (ca []byte, leaf tls.Certificate, err error) {
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, leaf, err
	}
	leafKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, leaf, err
	}
	from, to := time.Now().Add(-time.Hour), time.Now().Add(365*24*time.Hour)
	authority := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "gcpkmstest CA"}, NotBefore: from, NotAfter: to,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	server := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "gcpkmstest"}, NotBefore: from, NotAfter: to,
		DNSNames: []string{"localhost", "cloudkms.googleapis.com"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	authorityDER, err := x509.CreateCertificate(rand.Reader, authority, authority, &caKey.PublicKey, caKey)
	if err != nil {
		return nil, leaf, err
	}
	serverDER, err := x509.CreateCertificate(rand.Reader, server, authority, &leafKey.PublicKey, caKey)
	if err != nil {
		return nil, leaf, err
	}
	ca = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: authorityDER})
	return ca, tls.Certificate{Certificate: [][]byte{serverDER}, PrivateKey: leafKey}, nil
}

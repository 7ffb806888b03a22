package vaulttest

import (
	"io"
	"net"
	"sync"
)

// Proxy is a TCP proxy before the server, which makes faults of the network.
type Proxy struct {
	URL string

	mu    sync.Mutex
	conns map[net.Conn]bool
	cut   bool
	gate  chan struct{} // closed: bytes pass
}

// Proxy starts a proxy, which ends with the test.
func (s *Server) Proxy() *Proxy {
	s.host.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.host.Fatalf("%v", err)
	}
	p := &Proxy{URL: "https://" + l.Addr().String(), conns: map[net.Conn]bool{}, gate: make(chan struct{})}
	close(p.gate)
	target := s.URL[len("https://"):]
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { p.serve(in, target) })
		}
	})
	s.host.Cleanup(func() {
		l.Close()
		p.Cut()
		wg.Wait()
	})
	return p
}

func (p *Proxy) serve(in net.Conn, target string) {
	defer in.Close()
	out, err := net.Dial("tcp", target)
	if err != nil {
		return
	}
	defer out.Close()
	p.mu.Lock()
	if p.cut {
		p.mu.Unlock()
		return
	}
	p.conns[in], p.conns[out] = true, true
	p.mu.Unlock()
	var wg sync.WaitGroup
	for _, way := range [][2]net.Conn{{in, out}, {out, in}} {
		wg.Go(func() {
			io.Copy(way[0], gated{p, way[1]})
			in.Close()
			out.Close()
		})
	}
	wg.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, in)
	delete(p.conns, out)
}

// gated lets what it has read pass only while the proxy does not hang.
type gated struct {
	*Proxy
	from io.Reader
}

func (g gated) Read(b []byte) (int, error) {
	n, err := g.from.Read(b)
	g.mu.Lock()
	gate := g.gate
	g.mu.Unlock()
	<-gate
	return n, err
}

// Cut closes every connection, now and until Heal.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = true
	for c := range p.conns {
		c.Close()
	}
}

// Heal ends Cut.
func (p *Proxy) Heal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = false
}

// Hang keeps every byte back until release is called, which lets them go.
func (p *Proxy) Hang() (release func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	gate := make(chan struct{})
	p.gate = gate
	return func() { close(gate) }
}

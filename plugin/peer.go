package plugin

import (
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// refusedLogInterval is how often the refusals of one UID are logged.
const refusedLogInterval = time.Minute

// maxRefusedUIDs bounds the memory of whom was refused: a user with a range of
// subordinate UIDs has 65,536.
const maxRefusedUIDs = 1024

// peerListener accepts only connections whose process ran under an allowed UID
// when it connected (SO_PEERCRED, unix(7)), and closes all others unread. It is
// the second door behind the socket file's mode, and the only one in the moment
// before that is set.
//
// The kernel tells the UID as this process's user namespace sees it; users that
// have no place in it are all 65534.
type peerListener struct {
	net.Listener
	allowed []uint32
	refused func()
	log     *slog.Logger

	mu     sync.Mutex
	logged map[uint32]time.Time
}

func newPeerListener(inner net.Listener, c SocketConfig) *peerListener {
	p := &peerListener{
		Listener: inner, allowed: c.AllowedUIDs, refused: c.OnRefused, log: c.Logger,
		logged: map[uint32]time.Time{},
	}
	if len(p.allowed) == 0 {
		p.allowed = []uint32{0}
	}
	if p.refused == nil {
		p.refused = func() {}
	}
	if p.log == nil {
		p.log = slog.New(slog.DiscardHandler)
	}
	return p
}

// Accept returns the next allowed connection.
func (p *peerListener) Accept() (net.Conn, error) {
	for {
		conn, err := p.Listener.Accept()
		if err != nil {
			return nil, err
		}
		cred, err := peerOf(conn)
		if err == nil && slices.Contains(p.allowed, cred.Uid) {
			return conn, nil
		}
		conn.Close()
		p.refused()
		switch {
		case err != nil:
			p.log.Warn("refused a connection whose peer is not known", "error", err.Error())
		case p.firstInAWhile(cred.Uid):
			p.log.Warn("refused a connection: its UID is not in socket.allowedUIDs",
				"uid", cred.Uid, "pid", cred.Pid, "allowed", p.allowed)
		}
	}
}

func (p *peerListener) firstInAWhile(uid uint32) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if last, ok := p.logged[uid]; ok && time.Since(last) < refusedLogInterval {
		return false
	}
	if len(p.logged) >= maxRefusedUIDs {
		clear(p.logged)
	}
	p.logged[uid] = time.Now()
	return true
}

// peerOf returns the credentials of the process at the other end: of a
// connection's client, or on a client's side of the process that listens.
func peerOf(conn net.Conn) (*unix.Ucred, error) {
	uc, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, fmt.Errorf("asking for peer credentials: %T is not a unix socket", conn)
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("asking for peer credentials: %w", err)
	}
	var cred *unix.Ucred
	var optErr error
	if err := raw.Control(func(fd uintptr) {
		cred, optErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return nil, fmt.Errorf("asking for peer credentials: %w", err)
	}
	if optErr != nil {
		return nil, fmt.Errorf("asking for peer credentials: %w", optErr)
	}
	return cred, nil
}

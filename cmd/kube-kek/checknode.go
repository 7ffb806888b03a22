package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kube-kek/kube-kek/cmd/kube-kek/internal/config"
	"github.com/kube-kek/kube-kek/kek/localkek"
	"github.com/kube-kek/kube-kek/plugin"
)

// checkSocketOwner tells whether serve may give the socket to its owner.
func checkSocketOwner(r *report, s config.Socket) {
	if os.Geteuid() == 0 {
		return
	}
	if s.UID != -1 && s.UID != os.Geteuid() {
		r.add("socket.uid", bad, "only root may give a file to user %d; this is user %d", s.UID, os.Geteuid())
	}
	groups, _ := os.Getgroups()
	if s.GID != -1 && s.GID != os.Getegid() && !slices.Contains(groups, s.GID) {
		r.add("socket.gid", bad, "only root may give a file to group %d, which user %d is not of", s.GID, os.Geteuid())
	}
}

// checkSocketFiles looks at what serve keeps beside the socket.
func checkSocketFiles(r *report, path string) {
	if info, err := os.Lstat(path + ".lock"); err == nil && !info.Mode().IsRegular() {
		r.add("socket.path", bad, "%s.lock is there and no file (%s): remove it", path, info.Mode())
	}
	if _, err := (localkek.FileStore{Path: path + ".known"}).Load(); err != nil {
		r.add("socket.path", warn, "after a restart kube-kek is not ready for an outage until kube-apiserver has read all Secrets: %s", err)
	}
}

// checkSocket looks at the socket's place without taking it. restart says that a
// kube-kek which listens there will be stopped before serve is called.
func checkSocket(r *report, path string, restart bool) {
	const name = "socket.path"
	if err := plugin.CheckSocketPath(path); err != nil {
		r.add(name, bad, "%s", err)
		return
	}
	dir := filepath.Dir(path)
	if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
		r.add(name, bad, "the directory %s cannot be written: %s", dir, err)
		return
	}
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		r.add(name, good, "%s is free, its directory is for its owner alone", path)
		return
	case err != nil:
		r.add(name, bad, "%s", err)
		return
	case info.Mode().Type() != fs.ModeSocket:
		r.add(name, bad, "%s is there and no socket (%s)", path, info.Mode())
		return
	}
	conn, err := net.DialTimeout("unix", path, time.Second)
	if errors.Is(err, unix.ECONNREFUSED) {
		r.add(name, good, "%s was left by a process that has ended, and would be taken over", path)
		return
	}
	if err != nil {
		r.add(name, bad, "connecting to %s: %s", path, err)
		return
	}
	defer conn.Close()
	switch who := listenerOf(conn.(*net.UnixConn)); {
	case who == "systemd":
		r.add(name, good, "%s is held by systemd, which passes it on", path)
	case restart && (who == "kube-kek" || who == ""):
		r.add(name, warn, "%s is in use by %s, which must be stopped first", path, orSomeone(who))
	default:
		r.add(name, bad, "%s is in use by %s: stop it first, or ask with --restart what would be then", path, orSomeone(who))
	}
}

// listenerOf names the program that listens at the other end, "" where it is
// not of this PID namespace.
func listenerOf(conn *net.UnixConn) string {
	raw, err := conn.SyscallConn()
	if err != nil {
		return ""
	}
	var cred *unix.Ucred
	raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err != nil || cred == nil {
		return ""
	}
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", cred.Pid))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(comm))
}

func orSomeone(who string) string {
	if who == "" {
		return "a process of another container"
	}
	return who
}

// checkHealth tries the address and gives it back.
func checkHealth(r *report, address string) {
	const name = "health.address"
	if address == "" {
		r.add(name, good, "off")
		return
	}
	lis, err := net.Listen("tcp", address)
	if err != nil {
		r.add(name, warn, "%s; serve works without its metrics and tries again every %s", err, healthRetry)
		return
	}
	lis.Close()
	r.add(name, good, "%s is free", address)
}

// checkAudit opens a log that is there, and makes none that is not.
func checkAudit(r *report, a config.Audit) {
	const name = "audit.path"
	if a.Path == "" {
		r.add(name, good, "no audit log")
		return
	}
	res := bad
	if !a.Required {
		res = warn
	}
	if _, err := os.Lstat(a.Path); errors.Is(err, fs.ErrNotExist) {
		dir := filepath.Dir(a.Path)
		if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
			r.add(name, res, "%s does not exist and its directory cannot be written: %s", a.Path, err)
			return
		}
		r.add(name, good, "%s will be made", a.Path)
		return
	}
	log, err := plugin.NewAuditLog(a.Path, true)
	if err != nil {
		r.add(name, res, "%s", err)
		return
	}
	log.Close()
	r.add(name, good, "%s can be appended to", a.Path)
}

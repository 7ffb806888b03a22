package main

import (
	"fmt"
	"log/slog"

	"golang.org/x/sys/unix"
)

// hardening tells what was done to keep key bytes in memory and in this process.
type hardening struct {
	coreDumps error // nil if there will be none
	memory    error // nil if no page is ever swapped out
}

// harden turns core dumps off, keeps other processes of our user from attaching,
// locks memory where that is permitted, and makes files for us alone. It is
// called before anything secret is read. None of it is needed to serve, so a
// failure is told and lived with.
func harden() hardening {
	unix.Umask(0o077)
	return hardening{coreDumps: forbidCoreDumps(), memory: lockMemory()}
}

// forbidCoreDumps sets RLIMIT_CORE, and PR_SET_DUMPABLE for where the kernel
// pipes cores to a program and heeds no limit (core(5)). The latter also closes
// /proc/PID/mem to our own user (ptrace(2)).
func forbidCoreDumps() error {
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("setting RLIMIT_CORE to 0: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("making the process undumpable: %w", err)
	}
	return nil
}

// lockMemory keeps pages out of swap (mlockall(2)). Under a limit it is not
// tried: the Go runtime maps far more than it touches, and would die at the
// first mapping beyond the limit.
func lockMemory() error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &limit); err != nil {
		return fmt.Errorf("reading RLIMIT_MEMLOCK: %w", err)
	}
	if limit.Cur != unix.RLIM_INFINITY && !mayLock() {
		return fmt.Errorf("RLIMIT_MEMLOCK is %d bytes and CAP_IPC_LOCK is missing: swap may get key bytes unless it is off or encrypted", limit.Cur)
	}
	// ONFAULT locks what is touched, when it is touched: reserved address space
	// costs nothing.
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
		return fmt.Errorf("locking memory: %w", err)
	}
	return nil
}

func mayLock() bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData // 64 capabilities
	err := unix.Capget(&header, &data[0])
	return err == nil && data[0].Effective&(1<<unix.CAP_IPC_LOCK) != 0
}

func (h hardening) log(log *slog.Logger) {
	if h.coreDumps != nil {
		log.Warn("core dumps are not off", "error", h.coreDumps.Error())
	}
	if h.memory != nil {
		log.Warn("memory is not locked", "error", h.memory.Error())
	}
	log.Info("process hardened", "core_dumps_off", h.coreDumps == nil, "memory_locked", h.memory == nil)
}

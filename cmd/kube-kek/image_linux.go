package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// releaseImage gives back the pages of the program's own file that starting has
// touched: two thirds of what is resident by then, most of it never needed
// again, and all of it pinned where memory is locked. What is needed comes back
// from the page cache. Code and constants hold no secret.
//
// Only mappings that are not writable, and that by the kernel's count hold no
// page changed since it was read (relocations are), are given back.
func releaseImage() error {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	smaps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		return err
	}
	var errs []error
	for _, m := range imageMappings(string(smaps), exe) {
		_, _, errno := unix.Syscall(unix.SYS_MUNLOCK, m.from, m.to-m.from, 0)
		if errno == 0 {
			_, _, errno = unix.Syscall(unix.SYS_MADVISE, m.from, m.to-m.from, unix.MADV_DONTNEED)
		}
		if errno != 0 {
			errs = append(errs, errno)
		}
	}
	return errors.Join(errs...)
}

type mapping struct{ from, to uintptr }

// imageMappings reads proc_pid_smaps(5): for each mapping a line such as
//
//	00400000-00d4e000 r-xp 00000000 fe:00 9978631    /usr/bin/kube-kek
//
// and below it lines such as "Anonymous:  0 kB", which counts changed pages.
func imageMappings(smaps, exe string) []mapping {
	var found []mapping
	var at string // addresses of the mapping that the lines are about, "" if it is not to be touched
	for line := range strings.Lines(smaps) {
		f := strings.Fields(line)
		switch {
		case len(f) == 6 && strings.Contains(f[0], "-"):
			at = ""
			if f[5] == exe && !strings.Contains(f[1], "w") {
				at = f[0]
			}
		case len(f) == 3 && at != "" && f[0] == "Anonymous:" && f[1] == "0":
			var m mapping
			if _, err := fmt.Sscanf(at, "%x-%x", &m.from, &m.to); err == nil {
				found = append(found, m)
			}
		}
	}
	return found
}

package main

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// plainWidth is how wide output is that nobody looks at on a terminal.
const plainWidth = 100

// widthOf returns the columns of a terminal, and false for anything else.
func widthOf(w io.Writer) (columns int, terminal bool) {
	f, ok := w.(*os.File)
	if !ok {
		return plainWidth, false
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return plainWidth, false
	}
	if size.Col == 0 { // it does not know
		return plainWidth, true
	}
	return int(size.Col), true
}

// progress is one line that says what goes on, on a terminal alone.
type progress struct {
	w     io.Writer
	width int
	on    bool
}

func newProgress(w io.Writer) *progress {
	width, terminal := widthOf(w)
	return &progress{w, width, terminal}
}

// say replaces the line.
func (p *progress) say(n, of int, what string) {
	if !p.on {
		return
	}
	line := []rune(fmt.Sprintf("[%d/%d] %s", n, of, what))
	line = line[:min(len(line), p.width-1)]
	fmt.Fprintf(p.w, "\r\x1b[K%s", string(line))
}

// clear removes the line.
func (p *progress) clear() {
	if p.on {
		fmt.Fprint(p.w, "\r\x1b[K")
	}
}

package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Mistake is one thing that is wrong with a configuration.
type Mistake struct {
	Path string // of the field, e.g. "previous[1].uri"; empty for the file as a whole
	Text string // what is wrong and what would be right
}

// Document is a configuration with the place where each field was said and the
// mistakes found so far. Use it in this order: [Parse] or [New], Say for
// each flag, Validate, Err.
type Document struct {
	Config

	file     string
	lines    map[string]int    // field's path → line in file
	flags    map[string]string // field's path → flag that says it, or should
	mistakes []Mistake
}

// New returns the defaults as a document without a file.
func New() *Document {
	return &Document{Config: Default(), lines: map[string]int{}, flags: map[string]string{}}
}

// Say notes that a flag says the field at path, or should: mistakes then name
// the flag. It is a mistake if the file says it too.
func (d *Document) Say(path, flag string) {
	if line, ok := d.lines[path]; ok {
		d.Add(path, "said twice, by %s and on line %d of %s; keep one", flag, line, d.file)
		return
	}
	d.flags[path] = flag
}

// Add notes a mistake, unless one of the same field or of a field around it is
// noted already: "required" helps nobody who has just read "unknown scheme".
func (d *Document) Add(path, format string, args ...any) {
	for _, m := range d.mistakes {
		if m.Path == path && path != "" || strings.HasPrefix(path, m.Path+".") || strings.HasPrefix(path, m.Path+"[") {
			return
		}
	}
	d.mistakes = append(d.mistakes, Mistake{path, fmt.Sprintf(format, args...)})
}

// Validate adds what [Config.Validate] finds, unless the file could not be read
// at all.
func (d *Document) Validate() {
	if slices.ContainsFunc(d.mistakes, func(m Mistake) bool { return m.Path == "" }) {
		return
	}
	for _, m := range d.Config.Validate() {
		d.Add(m.Path, "%s", m.Text)
	}
}

// Err returns nil, or an error that lists all the mistakes noted so far, in the
// order of the file.
func (d *Document) Err() error {
	if len(d.mistakes) == 0 {
		return nil
	}
	return &Error{d.file, d.sorted()}
}

func (d *Document) sorted() []string {
	ms := slices.Clone(d.mistakes)
	slices.SortStableFunc(ms, func(a, b Mistake) int { return cmp.Compare(d.lines[a.Path], d.lines[b.Path]) })
	var out []string
	for _, m := range ms {
		s := m.Text
		if flag, ok := d.flags[m.Path]; ok {
			s = flag + ": " + s
		} else if m.Path != "" {
			s = m.Path + ": " + s
		}
		if line := d.lines[m.Path]; line > 0 {
			s = fmt.Sprintf("line %d: %s", line, s)
		}
		out = append(out, s)
	}
	return out
}

// Error is a configuration that cannot be used.
type Error struct {
	File     string   // empty if there is none
	Mistakes []string // each with its place
}

// Error lists the mistakes, one a line.
func (e *Error) Error() string {
	s := "configuration"
	if e.File != "" {
		s += " " + e.File
	}
	if len(e.Mistakes) == 1 {
		return s + ": " + e.Mistakes[0]
	}
	return fmt.Sprintf("%s: %d mistakes:\n  %s", s, len(e.Mistakes), strings.Join(e.Mistakes, "\n  "))
}

package bench

import (
	"fmt"
	"io"
	"math"
	"strings"
	"time"
	"unicode/utf8"
)

// Bucket counts the calls that took at most UpTo and more than the bucket before.
type Bucket struct {
	UpTo  time.Duration
	Calls int
}

// Buckets sorts the calls into buckets whose bounds are 1, 1.5, 2, 3, 5 and 7
// times a power of ten, from the first that has calls to the last.
func (s Sample) Buckets() []Bucket {
	if len(s.Took) == 0 {
		return nil
	}
	return s.between(s.Took[0], s.Took[len(s.Took)-1])
}

// between returns the buckets from the one that holds shortest to the one that
// holds longest, empty ones too.
func (s Sample) between(shortest, longest time.Duration) []Bucket {
	var out []Bucket
	i := 0
	for bound := range bounds {
		n := 0
		for ; i < len(s.Took) && s.Took[i] <= bound; i++ {
			n++
		}
		if bound >= shortest {
			out = append(out, Bucket{bound, n})
		}
		if bound >= longest {
			break
		}
	}
	return out
}

// bounds yields the upper bounds of the buckets, from 1 µs; the last one has no
// end.
func bounds(yield func(time.Duration) bool) {
	for decade := time.Microsecond; decade <= 1000*time.Second; decade *= 10 {
		for _, tenths := range []time.Duration{10, 15, 20, 30, 50, 70} {
			if !yield(decade * tenths / 10) {
				return
			}
		}
	}
	yield(math.MaxInt64)
}

// Series is a sample with the name that it has in a picture.
type Series struct {
	Name string
	Sample
}

// Draw draws the series side by side on one logarithmic scale of time: a line for
// each bucket, with the share of each series' calls in it. No line is longer than
// width, which is taken as 40 at least.
func Draw(w io.Writer, width int, series ...Series) error {
	shortest, longest := time.Duration(math.MaxInt64), time.Duration(0)
	for _, s := range series {
		if n := len(s.Took); n > 0 {
			shortest, longest = min(shortest, s.Took[0]), max(longest, s.Took[n-1])
		}
	}
	if longest == 0 {
		return nil
	}
	const label, percent = 8, 7 // columns, with a space each
	bar := (max(width, 40)-label)/len(series) - percent - 1

	columns := make([][]Bucket, len(series))
	peak := 0.0
	for i, s := range series {
		columns[i] = s.between(shortest, longest)
		for _, b := range columns[i] {
			peak = max(peak, portion(b, s))
		}
	}
	var out strings.Builder
	out.WriteString(strings.Repeat(" ", label))
	for _, s := range series {
		fmt.Fprintf(&out, "%*s %s", percent-1, "", pad(s.Name, bar+1))
	}
	out.WriteByte('\n')
	gap := false
	for row := range columns[0] {
		if empty(columns, row) && row > 0 && empty(columns, row-1) {
			if !gap {
				fmt.Fprintf(&out, "%*s\n", label-1, "⋮")
			}
			gap = true
			continue
		}
		gap = false
		fmt.Fprintf(&out, "%*s ", label-1, "≤"+Short(columns[0][row].UpTo))
		for i, s := range series {
			part := portion(columns[i][row], s)
			fmt.Fprintf(&out, "%5.1f%% %s", 100*part, pad(blocks(part/peak, bar), bar+1))
		}
		out.WriteByte('\n')
	}
	_, err := io.WriteString(w, trimLines(out.String()))
	return err
}

func portion(b Bucket, s Series) float64 {
	if len(s.Took) == 0 {
		return 0
	}
	return float64(b.Calls) / float64(len(s.Took))
}

func empty(columns [][]Bucket, row int) bool {
	for _, c := range columns {
		if c[row].Calls > 0 {
			return false
		}
	}
	return true
}

// blocks draws a bar in eighths of a column. What is not nothing can be seen.
func blocks(part float64, width int) string {
	eighths := int(math.Round(part * float64(width) * 8))
	if part > 0 {
		eighths = max(eighths, 1)
	}
	bar := strings.Repeat("█", eighths/8)
	if rest := eighths % 8; rest > 0 {
		bar += string([]rune("▏▎▍▌▋▊▉")[rest-1])
	}
	return bar
}

// pad fills up with spaces to so many columns.
func pad(s string, columns int) string {
	return s + strings.Repeat(" ", max(0, columns-utf8.RuneCountInString(s)))
}

func trimLines(s string) string {
	var out strings.Builder
	for line := range strings.Lines(s) {
		out.WriteString(strings.TrimRight(line, " \n") + "\n")
	}
	return out.String()
}

// Short writes a time with at most three digits: 98.2µs, 1.05ms, 3s.
func Short(d time.Duration) string {
	unit, name := time.Microsecond, "µs"
	switch {
	case d == math.MaxInt64: // the last bucket
		return "∞"
	case d >= 999500*time.Microsecond:
		unit, name = time.Second, "s"
	case d >= 999500*time.Nanosecond:
		unit, name = time.Millisecond, "ms"
	}
	v := float64(d) / float64(unit)
	digits := 2
	if v >= 99.95 {
		digits = 0
	} else if v >= 9.995 {
		digits = 1
	}
	s := fmt.Sprintf("%.*f", digits, v)
	if strings.Contains(s, ".") {
		s = strings.TrimRight(strings.TrimRight(s, "0"), ".")
	}
	return s + name
}

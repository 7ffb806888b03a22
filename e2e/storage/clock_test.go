package storage

import (
	"sync/atomic"
	"time"
)

// clock is the time by which kube-apiserver's storage code lets a seed expire.
type clock struct{ at atomic.Pointer[time.Time] }

func newClock(t time.Time) *clock {
	c := &clock{}
	c.set(t)
	return c
}

func (c *clock) set(t time.Time) { c.at.Store(&t) }
func (c *clock) now() time.Time  { return *c.at.Load() }

package plugin

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestTheRefusalsOfAUserAreLoggedOnceAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeerListener(nil, SocketConfig{})
		want := func(uid uint32, logged bool) {
			t.Helper()
			if got := p.firstInAWhile(uid); got != logged {
				t.Errorf("UID %d at %s: logged %t, want %t", uid, time.Now().Format(time.TimeOnly), got, logged)
			}
		}
		want(1, true)
		want(1, false)
		want(2, true)
		time.Sleep(time.Minute - time.Nanosecond)
		want(1, false)
		time.Sleep(time.Nanosecond)
		want(1, true)
		want(1, false)
		for uid := range uint32(100_000) {
			p.firstInAWhile(uid)
		}
		if len(p.logged) > maxRefusedUIDs {
			t.Errorf("remembers %d users, at most %d", len(p.logged), maxRefusedUIDs)
		}
	})
}

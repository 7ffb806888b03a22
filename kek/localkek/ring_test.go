package localkek_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kube-kek/kube-kek/kek"
	"github.com/kube-kek/kube-kek/kek/kektest"
	"github.com/kube-kek/kube-kek/kek/localkek"
)

// config is what most tests start from: one home, short names.
func config(p kek.Provider) localkek.Config {
	c := localkek.DefaultConfig()
	c.Cluster = "test"
	c.Current = localkek.Home{Scheme: "fake", ID: "fake", Provider: p}
	return c
}

// start runs a ring inside a synctest bubble and waits for its first word.
func start(t *testing.T, c localkek.Config) *localkek.Ring {
	t.Helper()
	r, err := localkek.New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { r.Run(ctx); close(done) }()
	t.Cleanup(func() { stop(); <-done; r.Close() })
	synctest.Wait()
	return r
}

func seed() []byte {
	b := make([]byte, 32)
	rand.Read(b)
	return b
}

func mustSeal(t *testing.T, r *localkek.Ring, s []byte) localkek.Sealed {
	t.Helper()
	sealed, err := r.Seal(t.Context(), s)
	if err != nil {
		t.Fatalf("Seal: %v", err)
	}
	return sealed
}

func mustOpen(t *testing.T, r *localkek.Ring, sealed localkek.Sealed, want []byte) {
	t.Helper()
	got, err := r.Open(t.Context(), sealed)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	if !bytes.Equal(got, want) {
		t.Fatal("Open returned another seed than was sealed")
	}
}

func mustKeyID(t *testing.T, r *localkek.Ring) string {
	t.Helper()
	id, err := r.KeyID()
	if err != nil {
		t.Fatalf("KeyID: %v", err)
	}
	return id
}

func refuses(t *testing.T, r *localkek.Ring, sealed localkek.Sealed, kind kek.Kind) {
	t.Helper()
	if got, err := r.Open(t.Context(), sealed); !errors.Is(err, kind) || got != nil {
		t.Errorf("Open: error %v, want Kind %v and no seed", err, kind)
	}
}

func TestSealAndOpenAskNobodyOnceTheRingIsReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := kektest.New(kektest.Config{})
		r := start(t, config(p))
		calls := p.Calls()
		for range 100 {
			s := seed()
			mustOpen(t, r, mustSeal(t, r, s), s)
		}
		if got := p.Calls() - calls; got != 0 {
			t.Errorf("100 seals and opens made %d KMS calls, want 0", got)
		}
		if got, want := mustKeyID(t, r), "fake:fake@1"; got != want {
			t.Errorf("key ID %q, want %q", got, want)
		}
	})
}

func TestSeedSizes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, config(kektest.New(kektest.Config{})))
		for _, n := range []int{1, 16, 32, 64, localkek.MaxSeed} {
			s := bytes.Repeat([]byte{7}, n)
			sealed := mustSeal(t, r, s)
			mustOpen(t, r, sealed, s)
			if len(sealed.Ciphertext) > 1024 {
				t.Errorf("a seed of %d bytes makes a ciphertext of %d; the KMS v2 API allows 1024", n, len(sealed.Ciphertext))
			}
		}
		for _, n := range []int{0, localkek.MaxSeed + 1} {
			if _, err := r.Seal(t.Context(), make([]byte, n)); !errors.Is(err, kek.Invalid) {
				t.Errorf("sealing %d bytes: %v, want Invalid", n, err)
			}
		}
	})
}

func TestAnotherRingAsksOncePerLocalKEK(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := kektest.New(kektest.Config{})
		type record struct {
			localkek.Sealed
			seed []byte
		}
		var records []record
		for range 3 { // three plugin starts, each with a local KEK of its own
			r := start(t, config(p))
			for range 20 {
				s := seed()
				records = append(records, record{mustSeal(t, r, s), s})
			}
		}
		r := start(t, config(p))
		p.SetDelay(20*time.Millisecond, kek.OpUnwrap)
		calls := p.Calls()
		var wg sync.WaitGroup
		for _, rec := range records {
			for range 5 {
				wg.Go(func() { mustOpen(t, r, rec.Sealed, rec.seed) })
			}
		}
		wg.Wait()
		if got := p.Calls() - calls; got != 3 {
			t.Errorf("300 concurrent opens of 60 seeds under 3 local KEKs made %d KMS calls, want 3", got)
		}
	})
}

// Callers that come while a flight lands must not start another.
func TestALocalKEKIsUnwrappedOnceHoweverCallersAreTimed(t *testing.T) {
	for range 50 {
		p := kektest.New(kektest.Config{})
		writer := startOutside(t, config(p))
		s := seed()
		sealed := mustSeal(t, writer, s)
		r := startOutside(t, config(p))
		calls := p.Calls(kek.OpUnwrap)
		var wg sync.WaitGroup
		for range 200 {
			wg.Go(func() { mustOpen(t, r, sealed, s) })
		}
		wg.Wait()
		if got := p.Calls(kek.OpUnwrap) - calls; got != 1 {
			t.Fatalf("200 callers caused %d unwraps, want 1", got)
		}
	}
}

func TestStrictEncryptsDoNotWaitForEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := kektest.New(kektest.Config{})
		c := config(p)
		c.Lease, c.MaxUses = 0, 1
		r := start(t, c)
		p.SetDelay(100 * time.Millisecond)
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() { mustSeal(t, r, seed()) })
		}
		wg.Wait()
	})
}

func TestACallerThatGivesUpDoesNotFailTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := kektest.New(kektest.Config{})
		s := seed()
		sealed := mustSeal(t, start(t, config(p)), s)
		r := start(t, config(p))
		p.SetDelay(time.Second, kek.OpUnwrap)

		hurried, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := r.Open(hurried, sealed); !errors.Is(err, kek.Unavailable) {
				t.Errorf("the caller that gave up: %v, want Unavailable", err)
			}
		})
		wg.Go(func() {
			time.Sleep(50 * time.Millisecond)
			mustOpen(t, r, sealed, s)
		})
		wg.Wait()
	})
}

func TestSealAndOpenEndBeforeKubeAPIServerGivesUp(t *testing.T) {
	for name, change := range map[string]func(*localkek.Config){
		"with a lease": func(c *localkek.Config) { c.MaxUses = 1 },
		"strict":       func(c *localkek.Config) { c.Lease, c.MaxUses = 0, 1 },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := kektest.New(kektest.Config{})
				cold := mustSeal(t, start(t, config(p)), seed())
				c := config(p)
				change(&c)
				r := start(t, c)
				mustSeal(t, r, seed()) // the next one needs the KMS
				defer p.Hang()()
				began := time.Now()
				var wg sync.WaitGroup
				for range 3 {
					wg.Go(func() {
						if _, err := r.Seal(t.Context(), seed()); !errors.Is(err, kek.Unavailable) {
							t.Errorf("Seal: %v, want Unavailable", err)
						}
					})
					wg.Go(func() { refuses(t, r, cold, kek.Unavailable) })
				}
				wg.Wait()
				if took := time.Since(began); took > c.CallTimeout {
					t.Errorf("took %s, want at most %s", took, c.CallTimeout)
				}
			})
		})
	}
}

func TestAnOutageIsOutlivedUntilTheLeaseEnds(t *testing.T) {
	for _, kind := range []kek.Kind{kek.Unavailable, kek.Throttled, kek.Unauthenticated, kek.Unknown, kek.Corrupt} {
		t.Run(kind.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := kektest.New(kektest.Config{})
				c := config(p)
				c.Lease = time.Hour
				r := start(t, c)
				s := seed()
				sealed := mustSeal(t, r, s)

				p.Fail(kind)
				time.Sleep(59 * time.Minute)
				mustOpen(t, r, sealed, s)
				mustOpen(t, r, mustSeal(t, r, s), s)
				mustKeyID(t, r)
				if snap := r.Snapshot(); snap.Versions[0].LastErr == nil || snap.Versions[0].LeaseLeft > time.Minute {
					t.Errorf("snapshot hides the outage: %+v", snap.Versions[0])
				}

				time.Sleep(time.Minute)
				refuses(t, r, sealed, kind)
				if _, err := r.Seal(t.Context(), s); !errors.Is(err, kind) {
					t.Errorf("Seal after the lease: %v, want %v", err, kind)
				}
				if id, err := r.KeyID(); !errors.Is(err, kind) || id != "" {
					t.Errorf("KeyID after the lease: %q, %v, want %v", id, err, kind)
				}
				time.Sleep(time.Minute)
				if n := r.Snapshot().LocalKEKs; n != 0 {
					t.Errorf("%d local KEKs in memory after the lease, want 0", n)
				}

				p.Heal()
				time.Sleep(2 * time.Minute)
				mustOpen(t, r, sealed, s)
				mustOpen(t, r, mustSeal(t, r, s), s)
			})
		})
	}
}

func TestAnOutageLongerThanTheLeaseButWithWordsBetweenEndsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := kektest.New(kektest.Config{})
		c := config(p)
		c.Lease = time.Hour
		r := start(t, c)
		for range 5 {
			p.Fail(kek.Unavailable)
			time.Sleep(50 * time.Minute)
			p.Heal()
			time.Sleep(5 * time.Minute)
			mustKeyID(t, r)
		}
	})
}

func TestTheWordOfTheKMSEndsAccess(t *testing.T) {
	for _, kind := range []kek.Kind{kek.Denied, kek.KeyDisabled, kek.KeyNotFound} {
		t.Run(kind.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := kektest.New(kektest.Config{})
				c := config(p)
				r := start(t, c)
				s := seed()
				sealed := mustSeal(t, r, s)
				keyID := mustKeyID(t, r)

				p.Fail(kind)
				time.Sleep(2 * c.Renew)
				refuses(t, r, sealed, kind)
				if _, err := r.Seal(t.Context(), s); !errors.Is(err, kind) {
					t.Errorf("Seal: %v, want %v", err, kind)
				}
				if _, err := r.KeyID(); !errors.Is(err, kind) {
					t.Errorf("KeyID: %v, want %v", err, kind)
				}
				if n := r.Snapshot().LocalKEKs; n != 0 {
					t.Errorf("%d local KEKs in memory, want 0", n)
				}

				p.Heal()
				time.Sleep(time.Minute)
				mustOpen(t, r, sealed, s)
				if got := mustKeyID(t, r); got != keyID {
					t.Errorf("after the key was enabled again the key ID is %q, want %q as before", got, keyID)
				}
			})
		})
	}
}

func TestOneRefusalIsNotBelieved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := kektest.New(kektest.Config{})
		c := config(p)
		r := start(t, c)
		s := seed()
		sealed := mustSeal(t, r, s)
		p.FailTimes(1, kek.Denied, kek.OpUnwrap)
		calls := p.Calls(kek.OpUnwrap)
		for range 1000 {
			time.Sleep(time.Second)
			mustKeyID(t, r)
			mustOpen(t, r, sealed, s)
		}
		if p.Calls(kek.OpUnwrap)-calls < 2 {
			t.Error("the refusal was not asked about again")
		}
	})
}

func TestARefusedRequestBringsTheRenewalForward(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := kektest.New(kektest.Config{})
		cold := mustSeal(t, start(t, config(p)), seed())
		r := start(t, config(p))
		warm := mustSeal(t, r, seed())
		time.Sleep(2 * time.Second)
		p.Disable()
		refuses(t, r, cold, kek.KeyDisabled)
		time.Sleep(10 * time.Second) // far less than a renewal
		refuses(t, r, warm, kek.KeyDisabled)
	})
}

func TestARotationMovesTheKeyIDOnceAndOldRecordsOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := kektest.New(kektest.Config{})
		c := config(p)
		r := start(t, c)
		s := seed()
		old := mustSeal(t, r, s)
		p.Rotate()
		p.WrapLags(1) // the home tells of a version that its Wrap does not use yet
		var ids []string
		for range 60 {
			id := mustKeyID(t, r)
			if sealed := mustSeal(t, r, s); sealed.KeyID != id {
				t.Fatalf("Status says %q and Encrypt %q", id, sealed.KeyID)
			}
			if len(ids) == 0 || ids[len(ids)-1] != id {
				ids = append(ids, id)
			}
			time.Sleep(30 * time.Second)
		}
		if got, want := strings.Join(ids, " "), "fake:fake@1 fake:fake@2"; got != want {
			t.Errorf("key IDs seen: %s, want %s", got, want)
		}
		mustOpen(t, r, old, s)
		mustOpen(t, start(t, c), old, s)
		if snap := r.Snapshot(); snap.Rotations != 1 || len(snap.Versions) != 2 || !snap.Versions[0].Current || snap.Versions[0].KeyID != "fake:fake@2" {
			t.Errorf("snapshot after the rotation: %+v", snap)
		}
	})
}

func TestAVersionThatWasLeftIsNotReturnedTo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := kektest.New(kektest.Config{})
		c := config(p)
		r := start(t, c)
		p.Rotate()
		time.Sleep(2 * c.Renew)
		if got := mustKeyID(t, r); got != "fake:fake@2" {
			t.Fatalf("key ID %q", got)
		}
		p.SetCurrent("1") // a replica of the home that lags
		for range 20 {
			time.Sleep(c.Renew)
			if got := mustKeyID(t, r); got != "fake:fake@2" {
				t.Fatalf("the key ID went back to %q", got)
			}
		}
		p.SetCurrent("2")
		p.Rotate()
		time.Sleep(2 * c.Renew)
		if got := mustKeyID(t, r); got != "fake:fake@3" {
			t.Errorf("key ID %q after a further rotation", got)
		}
	})
}

func TestALocalKEKThatCouldNotComeBackIsNotUsed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := kektest.New(kektest.Config{})
		p.MangleWraps(3)
		r, err := localkek.New(config(p))
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		go r.Run(ctx)
		synctest.Wait()
		if _, err := r.KeyID(); !errors.Is(err, kek.Corrupt) {
			t.Errorf("KeyID: %v, want Corrupt", err)
		}
		if _, err := r.Seal(t.Context(), seed()); !errors.Is(err, kek.Corrupt) {
			t.Errorf("Seal: %v, want Corrupt", err)
		}
		time.Sleep(time.Minute)
		mustKeyID(t, r)
	})
}

func TestARingThatCannotReachItsHomeWaitsAndSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := kektest.New(kektest.Config{})
		p.Fail(kek.Unauthenticated)
		r := start(t, config(p))
		if _, err := r.KeyID(); !errors.Is(err, kek.Unauthenticated) {
			t.Errorf("KeyID: %v, want Unauthenticated", err)
		}
		p.Heal()
		time.Sleep(time.Minute)
		mustKeyID(t, r)
	})
}

func TestStrictModeAsksAtEachUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := kektest.New(kektest.Config{})
		c := config(p)
		c.Lease, c.MaxUses = 0, 1
		r := start(t, c)
		wraps := map[string]bool{}
		for range 5 {
			s := seed()
			before := p.Calls(kek.OpWrap, kek.OpUnwrap)
			sealed := mustSeal(t, r, s)
			if p.Calls(kek.OpWrap, kek.OpUnwrap) == before {
				t.Error("Seal did not ask the KMS")
			}
			wraps[string(sealed.Annotations[localkek.AnnotationName])] = true
			for range 2 {
				before = p.Calls(kek.OpUnwrap)
				mustOpen(t, r, sealed, s)
				if got := p.Calls(kek.OpUnwrap) - before; got != 1 {
					t.Errorf("Open asked the KMS %d times, want once", got)
				}
			}
		}
		if len(wraps) != 5 {
			t.Errorf("5 seeds have %d local KEKs, want one each", len(wraps))
		}
		if n := r.Snapshot().LocalKEKs; n != 0 {
			t.Errorf("%d local KEKs in memory, want 0", n)
		}

		s := seed()
		sealed := mustSeal(t, r, s)
		p.Fail(kek.Unavailable)
		refuses(t, r, sealed, kek.Unavailable)
		if _, err := r.Seal(t.Context(), s); !errors.Is(err, kek.Unavailable) {
			t.Errorf("Seal without the KMS: %v, want Unavailable", err)
		}
		time.Sleep(10 * time.Second)
		if _, err := r.KeyID(); !errors.Is(err, kek.Unavailable) {
			t.Errorf("KeyID without the KMS: %v, want Unavailable", err)
		}
		p.Heal()
		time.Sleep(time.Minute)
		mustOpen(t, r, sealed, s)
		mustKeyID(t, r)
	})
}

func TestStrictModeFollowsARotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := kektest.New(kektest.Config{})
		c := config(p)
		c.Lease, c.MaxUses = 0, 1
		r := start(t, c)
		s := seed()
		old := mustSeal(t, r, s)
		p.Rotate()
		mustSeal(t, r, s) // uses up what was made before
		sealed := mustSeal(t, r, s)
		if id := mustKeyID(t, r); sealed.KeyID != id || id != "fake:fake@2" {
			t.Errorf("Encrypt says %q and Status %q, want fake:fake@2 of both", sealed.KeyID, id)
		}
		mustOpen(t, r, old, s)
		mustOpen(t, r, sealed, s)
	})
}

func TestMaxUsesBoundsTheSeedsUnderOneLocalKEK(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := config(kektest.New(kektest.Config{}))
		c.MaxUses = 10
		r := start(t, c)
		var mu sync.Mutex
		uses := map[string]int{}
		var wg sync.WaitGroup
		for range 95 {
			wg.Go(func() {
				sealed := mustSeal(t, r, seed())
				mu.Lock()
				uses[string(sealed.Annotations[localkek.AnnotationName])]++
				mu.Unlock()
			})
		}
		wg.Wait()
		for _, n := range uses {
			if n > 10 {
				t.Errorf("a local KEK sealed %d seeds, want at most 10", n)
			}
		}
		if len(uses) != 10 {
			t.Errorf("95 seeds under %d local KEKs, want 10", len(uses))
		}
	})
}

func TestALocalKEKIsReplacedBeforeItIsUsedUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := kektest.New(kektest.Config{})
		c := config(p)
		c.MaxUses = 10
		r := start(t, c)
		for range 6 {
			mustSeal(t, r, seed())
		}
		time.Sleep(2 * c.Renew)
		p.Fail(kek.Unavailable) // an outage finds a fresh one
		for range 10 {
			mustSeal(t, r, seed())
		}
	})
}

func TestTheCacheOfLocalKEKsIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := kektest.New(kektest.Config{})
		c := config(p)
		c.MaxUses = 1
		writer := start(t, c)
		const size, records = 4096, 5000
		s := seed()
		var sealed []localkek.Sealed
		for range records {
			sealed = append(sealed, mustSeal(t, writer, s))
		}
		r := start(t, config(p))
		for _, rec := range sealed {
			mustOpen(t, r, rec, s)
		}
		if n := r.Snapshot().LocalKEKs; n > size+1 || n < size {
			t.Errorf("%d local KEKs in memory after opening %d, want %d and the current one", n, records, size)
		}
		calls := p.Calls(kek.OpUnwrap)
		mustOpen(t, r, sealed[records-1], s)
		if p.Calls(kek.OpUnwrap) != calls {
			t.Error("the most recently used local KEK made way")
		}
		mustOpen(t, r, sealed[0], s) // long evicted: asked for again, and lost to nobody
		if p.Calls(kek.OpUnwrap) != calls+1 {
			t.Error("the least recently used local KEK did not make way")
		}
	})
}

func TestSteadyStateCallsPerHour(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := kektest.New(kektest.Config{})
		r := start(t, config(p))
		old := mustSeal(t, r, seed())
		p.Rotate()
		time.Sleep(time.Hour)
		if _, err := r.Open(t.Context(), old); err != nil {
			t.Fatal(err)
		}
		calls := len(p.Log())
		const hours = 100
		for range hours * 60 { // the apiserver's Status, once a minute, asks nobody
			mustKeyID(t, r)
			time.Sleep(time.Minute)
		}
		perHour := float64(len(p.Log())-calls) / hours
		if perHour > 40 {
			t.Errorf("%.1f KMS calls per hour with two key versions held, want at most 40", perHour)
		}
		for _, call := range p.Log()[calls:] {
			if call.Purpose != kek.Probe {
				t.Fatalf("a %s call was made as a %s", call.Op, call.Purpose)
			}
		}
		t.Logf("%.1f KMS calls per hour with two key versions held", perHour)
	})
}

func TestMovingToAnotherHomeAndBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := kektest.New(kektest.Config{ID: "a"}), kektest.New(kektest.Config{ID: "b"})
		home := func(id string, p kek.Provider, epoch int) localkek.Home {
			return localkek.Home{Scheme: "fake", ID: id, Provider: p, Epoch: epoch}
		}
		c := config(nil)
		s := seed()
		var records []localkek.Sealed
		for _, step := range []struct {
			current  localkek.Home
			previous []localkek.Home
			want     string
		}{
			{home("a", a, 0), nil, "fake:a@1"},
			{home("b", b, 0), []localkek.Home{home("a", a, 0)}, "fake:b@1"},
			{home("a", a, 2), []localkek.Home{home("b", b, 0)}, "fake:a@1~2"},
		} {
			c.Current, c.Previous = step.current, step.previous
			r := start(t, c)
			if got := mustKeyID(t, r); got != step.want {
				t.Errorf("key ID %q, want %q", got, step.want)
			}
			records = append(records, mustSeal(t, r, s))
			for _, rec := range records {
				mustOpen(t, r, rec, s)
			}
			if v := r.Snapshot().Versions[0]; !v.Current || v.KeyID != step.want {
				t.Errorf("the snapshot's current version is %q (%t), want %q", v.KeyID, v.Current, step.want)
			}
		}

		c.Previous = nil
		r := start(t, c)
		_, err := r.Open(t.Context(), records[1])
		if !errors.Is(err, kek.Invalid) || !strings.Contains(err.Error(), `add fake key b to "previous:"`) {
			t.Errorf("a record of a KEK that is not configured: %v", err)
		}
	})
}

func TestAnOutageOfAPreviousHomeStopsNeitherStatusNorWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := kektest.New(kektest.Config{ID: "a"}), kektest.New(kektest.Config{ID: "b"})
		a.Fail(kek.Denied)
		c := config(b)
		c.Current.ID = "b"
		c.Previous = []localkek.Home{{Scheme: "fake", ID: "a", Provider: a}}
		r := start(t, c)
		time.Sleep(time.Hour)
		s := seed()
		mustOpen(t, r, mustSeal(t, r, s), s)
		if snap := r.Snapshot(); snap.Err != nil || snap.Homes[1].LastErr == nil {
			t.Errorf("snapshot: %+v", snap)
		}
	})
}

func TestAKeyThatOnlyTheHomeCanNameIsLearnt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := kektest.New(kektest.Config{ID: "resolved"})
		c := config(p)
		c.Current.ID = ""
		s := seed()
		sealed := mustSeal(t, start(t, c), s)

		p.Fail(kek.Unavailable)
		r := start(t, c)
		refuses(t, r, sealed, kek.Unavailable)
		p.Heal()
		time.Sleep(time.Minute)
		mustOpen(t, r, sealed, s)
	})
}

func TestAHomeThatAnswersForAnotherKeyIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := config(kektest.New(kektest.Config{ID: "other"}))
		r := start(t, c)
		if _, err := r.KeyID(); !errors.Is(err, kek.Invalid) {
			t.Errorf("KeyID: %v, want Invalid", err)
		}
	})
}

func TestALongKeyIDIsRefusedAndALongVersionIsCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		long := kektest.New(kektest.Config{ID: strings.Repeat("k", 199)})
		c := config(long)
		c.Current.ID = ""
		if _, err := start(t, c).KeyID(); !errors.Is(err, kek.Invalid) {
			t.Errorf("KeyID: %v, want Invalid", err)
		}

		p := kektest.New(kektest.Config{VersionName: func(n int) string { return fmt.Sprintf("%d%063d", n, 0) }})
		r := start(t, config(p))
		s := seed()
		sealed := mustSeal(t, r, s)
		if want := "fake:fake@1" + strings.Repeat("0", 31); sealed.KeyID != want {
			t.Errorf("key ID %q, want %q", sealed.KeyID, want)
		}
		time.Sleep(time.Hour) // a cut version is not taken for a rotation
		mustOpen(t, r, sealed, s)
		if n := r.Snapshot().Rotations; n != 0 {
			t.Errorf("%d rotations seen, want 0", n)
		}
	})
}

func TestRequestIDsReachTheCallerThatWaited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := kektest.New(kektest.Config{})
		s := seed()
		sealed := mustSeal(t, start(t, config(p)), s)
		r := start(t, config(p))
		for i, want := range []int{1, 0} { // cold, then warm
			var calls kek.Calls
			if _, err := r.Open(kek.WithCalls(t.Context(), &calls), sealed); err != nil {
				t.Fatal(err)
			}
			if got := len(calls.IDs()); got != want {
				t.Errorf("open %d reported %d KMS calls, want %d", i+1, got, want)
			}
		}
	})
}

func TestConfigMistakesAreReportedAllAtOnce(t *testing.T) {
	_, err := localkek.New(localkek.Config{Lease: time.Hour, Renew: 40 * time.Minute})
	for _, want := range []string{"cluster", "renew", "maxUses", "cache size", "call timeout", "provider", "scheme"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not mention %s", err, want)
		}
	}
}

func TestCloseForgetsLocalKEKs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := kektest.New(kektest.Config{})
		r := start(t, config(p))
		mustSeal(t, r, seed())
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := r.KeyID(); err == nil {
			t.Error("KeyID answers after Close")
		}
		if _, err := r.Seal(t.Context(), seed()); err == nil {
			t.Error("Seal works after Close")
		}
		if n := r.Snapshot().LocalKEKs; n != 0 {
			t.Errorf("%d local KEKs in memory after Close", n)
		}
		if p.Closed() == 0 {
			t.Error("the provider was not closed")
		}
	})
}

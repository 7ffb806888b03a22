package main

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/kube-kek/kube-kek/cmd/kube-kek/internal/config"
	"github.com/kube-kek/kube-kek/kek"
	"github.com/kube-kek/kube-kek/kek/localkek"
)

// homeCheck asks one home for all that serve will ask of it.
type homeCheck struct {
	r     *report
	name  string // "kek", "previous[0]"
	home  localkek.Home
	limit time.Duration // of a call with its retries

	key     kek.KeyRef // as far as it is known
	wrapped []byte     // what was given to wrap
}

func checkHome(ctx context.Context, r *report, k config.Named, h localkek.Home, limit time.Duration) {
	hc := &homeCheck{r: r, name: k.Path, home: h, limit: limit, key: kek.KeyRef{ID: h.ID}}
	hc.identity(ctx)
	goOn := hc.current(ctx)
	hc.facts()
	if !goOn {
		return
	}
	if w, ok := hc.wrap(ctx); ok {
		hc.unwrap(ctx, w)
	}
}

// opensOnly tells a KEK of previous, which nobody asks to wrap.
func (h *homeCheck) opensOnly() bool { return h.name != "kek" }

func (h *homeCheck) identity(ctx context.Context) {
	i, ok := kek.As[kek.Identifier](h.home.Provider)
	if !ok {
		return
	}
	var who string
	took, err := timed(ctx, h.limit, func(ctx context.Context) (err error) {
		who, err = i.Identity(ctx)
		return err
	})
	if err != nil { // serve never asks for it
		h.put(kek.OpIdentity, warn, took, err, "")
		return
	}
	h.put(kek.OpIdentity, good, took, nil, who)
}

// current reports whether there is any use in asking on.
func (h *homeCheck) current(ctx context.Context) bool {
	var ref kek.KeyRef
	took, err := timed(ctx, h.limit, func(ctx context.Context) (err error) {
		ref, err = h.home.Provider.Current(ctx)
		return err
	})
	switch kind := kek.KindOf(err); {
	case err == nil:
		h.key = ref
		h.put(kek.OpCurrent, good, took, nil, ref.String())
	case h.opensOnly() && h.home.ID != "" && kind == kek.Denied:
		h.put(kek.OpCurrent, warn, took, err, "its state will not be seen")
	default:
		h.put(kek.OpCurrent, bad, took, err, "")
		return kind == kek.Denied || kind == kek.KeyDisabled
	}
	if err == nil {
		if err := nameable(h.home.Scheme, ref.ID, h.home.Epoch); err != nil {
			h.put(kek.OpCurrent, bad, 0, err, "")
		}
	}
	return true
}

// facts tells what the home said of its key beside its version.
func (h *homeCheck) facts() {
	i, ok := kek.As[kek.Informer](h.home.Provider)
	if !ok {
		return
	}
	f := i.Facts()
	var told []string
	tell := func(what, value string) {
		if value != "" {
			told = append(told, what+value)
		}
	}
	tell("", strings.ReplaceAll(string(f.State), "_", " "))
	tell("created ", day(f.Created))
	tell("this version ", day(f.VersionCreated))
	tell("rotation ", f.Rotation)
	if len(told) > 0 {
		h.r.add(h.name+" state", good, "%s", strings.Join(told, ", "))
	}
	if !f.DeletionDate.IsZero() {
		h.r.add(h.name+" state", warn, "the key will be deleted on %s", day(f.DeletionDate))
	}
	for _, note := range f.Notes {
		h.r.add(h.name+" note", warn, "%s", note)
	}
}

func day(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.DateOnly)
}

// wrap wraps a random key, as the ring does with each local KEK.
func (h *homeCheck) wrap(ctx context.Context) (w kek.Wrapped, ok bool) {
	h.wrapped = make([]byte, 32)
	rand.Read(h.wrapped) // never fails (crypto/rand)
	took, err := timed(ctx, h.limit, func(ctx context.Context) (err error) {
		w, err = h.home.Provider.Wrap(ctx, h.wrapped)
		return err
	})
	switch {
	case err == nil:
		h.put(kek.OpWrap, good, took, nil, fmt.Sprintf("%d bytes from %d", len(w.Ciphertext), len(h.wrapped)))
		return w, true
	case h.opensOnly() && kek.KindOf(err) == kek.Denied:
		h.mayUnwrap(ctx, took, err)
	default:
		h.put(kek.OpWrap, bad, took, err, "")
	}
	return w, false
}

// mayUnwrap asks a home that will not wrap for us to unwrap random bytes. That
// it cannot, but it can say that it may not.
func (h *homeCheck) mayUnwrap(ctx context.Context, took float64, denied error) {
	nonsense := make([]byte, 64)
	rand.Read(nonsense)
	_, err := timed(ctx, h.limit, func(ctx context.Context) error {
		_, err := h.home.Provider.Unwrap(ctx, kek.Wrapped{Key: h.key, Ciphertext: nonsense})
		return err
	})
	if kek.KindOf(err) == kek.Denied {
		h.put(kek.OpUnwrap, bad, took, err, "")
		return
	}
	h.put(kek.OpWrap, warn, took, denied, "it need not wrap, but so it was not seen to unwrap")
}

// unwrap has the key come back.
func (h *homeCheck) unwrap(ctx context.Context, w kek.Wrapped) {
	var back []byte
	took, err := timed(ctx, h.limit, func(ctx context.Context) (err error) {
		back, err = h.home.Provider.Unwrap(ctx, w)
		return err
	})
	if err == nil && subtle.ConstantTimeCompare(h.wrapped, back) != 1 {
		err = errors.New("other bytes came back than were wrapped")
	}
	if err != nil {
		h.put(kek.OpUnwrap, bad, took, err, "")
		return
	}
	h.put(kek.OpUnwrap, good, took, nil, "the same bytes came back")
}

// put adds the finding of one call.
func (h *homeCheck) put(op kek.Op, res result, seconds float64, err error, detail string) {
	f := finding{Check: h.name + " " + string(op), Result: res, Seconds: seconds, Detail: detail}
	if err != nil {
		f.Detail = strings.Join(strings.Fields(err.Error()), " ")
		if detail != "" {
			f.Detail = detail + ": " + f.Detail
		}
		var e *kek.Error
		if errors.As(err, &e) {
			f.Permission = e.Permission
		}
	}
	h.r.put(f)
}

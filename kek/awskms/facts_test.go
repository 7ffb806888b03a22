package awskms_test

import (
	"strings"
	"testing"
	"time"

	"github.com/kube-kek/kube-kek/kek"
	"github.com/kube-kek/kube-kek/kek/awskms"
	"github.com/kube-kek/kube-kek/kek/awskms/awskmstest"
)

func TestAnEndpointWithoutMaterialIDsIsUnversioned(t *testing.T) {
	l := newLabOf(t, awskmstest.New(awskmstest.Config{WithoutMaterialIDs: true}))
	p := l.provider(t, awskms.Config{})
	w, err := p.Wrap(t.Context(), []byte("key"))
	if err != nil {
		t.Fatal(err)
	}
	ref, err := p.Current(t.Context())
	want := kek.KeyRef{ID: l.key, Version: "unversioned"}
	if err != nil || ref != want || w.Key != want {
		t.Errorf("Current %v, %v; Wrap %v; want %v", ref, err, w.Key, want)
	}
	if notes := strings.Join(p.Facts().Notes, " "); !strings.Contains(notes, "rotations of this key cannot be seen") {
		t.Errorf("notes: %q", notes)
	}
}

// A custom key store that is disconnected answers with the exception that a
// disabled key has too.
func TestADisconnectedKeyStoreIsAnOutageAndNoWordOnTheKey(t *testing.T) {
	l := newLab(t)
	p := l.provider(t, awskms.Config{})
	w, err := p.Wrap(t.Context(), []byte("key"))
	if err != nil {
		t.Fatal(err)
	}
	for state, want := range map[string]kek.Kind{
		awskmstest.Unavailable:     kek.Unavailable,
		awskmstest.PendingDeletion: kek.KeyDisabled,
		awskmstest.Disabled:        kek.KeyDisabled,
	} {
		l.SetState(l.key, state)
		if _, err := p.Unwrap(t.Context(), w); kek.KindOf(err) != want {
			t.Errorf("Unwrap in state %s: %v, want %v", state, err, want)
		}
		if _, err := p.Wrap(t.Context(), []byte("key")); kek.KindOf(err) != want {
			t.Errorf("Wrap in state %s: %v, want %v", state, err, want)
		}
	}
	l.Enable(l.key)
	l.SetFault(awskmstest.Fault{Actions: []string{"Decrypt"}, Code: "KMSInvalidStateException"})
	if _, err := p.Unwrap(t.Context(), w); kek.KindOf(err) != kek.Unavailable {
		t.Errorf("Unwrap with an enabled key: %v, want Unavailable", err)
	}
}

func TestFactsTellTheStateOfTheKey(t *testing.T) {
	l := newLab(t)
	p := l.provider(t, awskms.Config{})
	month := time.Now().AddDate(0, 0, 30)
	for _, c := range []struct {
		state    string
		kind     kek.Kind
		want     kek.State
		deletion bool
		text     string
	}{
		{awskmstest.Disabled, kek.KeyDisabled, kek.StateDisabled, false, "key state Disabled"},
		{awskmstest.PendingDeletion, kek.KeyDisabled, kek.StatePendingDeletion, true, "gone after " + month.UTC().Format("2006-01-02")},
		{awskmstest.PendingImport, kek.KeyDisabled, kek.StateDisabled, false, "key state PendingImport"},
		{awskmstest.Unavailable, kek.Unavailable, kek.StateUnknown, false, "key state Unavailable"},
	} {
		t.Run(c.state, func(t *testing.T) {
			l.SetState(l.key, c.state)
			_, err := p.Current(t.Context())
			if kek.KindOf(err) != c.kind || !strings.Contains(err.Error(), c.text) || !strings.Contains(err.Error(), l.key) {
				t.Errorf("Current: %v, want %v that says %q", err, c.kind, c.text)
			}
			f := p.Facts()
			if f.State != c.want || f.Key.ID != l.key || f.Created.IsZero() || f.DeletionDate.IsZero() == c.deletion {
				t.Errorf("facts: %+v", f)
			}
		})
	}
	l.Enable(l.key)
	if _, err := p.Current(t.Context()); err != nil || p.Facts().State != kek.StateEnabled || !p.Facts().DeletionDate.IsZero() {
		t.Errorf("enabled again: %v, %+v", err, p.Facts())
	}
}

func TestAKeyOfAnotherKindIsInvalid(t *testing.T) {
	l := newLab(t)
	for _, kind := range [][2]string{{"RSA_2048", "ENCRYPT_DECRYPT"}, {"HMAC_256", "GENERATE_VERIFY_MAC"}} {
		p := l.provider(t, awskms.Config{Key: l.CreateKeyOf(kind[0], kind[1])})
		_, err := p.Current(t.Context())
		if kek.KindOf(err) != kek.Invalid || !strings.Contains(err.Error(), kind[0]) || !strings.Contains(err.Error(), "SYMMETRIC_DEFAULT") {
			t.Errorf("%s: %v", kind[0], err)
		}
	}
}

func TestTheAgeOfAVersionIsAskedForOnce(t *testing.T) {
	l := newLab(t)
	ctx, p := t.Context(), l.provider(t, awskms.Config{})
	current := func() kek.Facts {
		t.Helper()
		if _, err := p.Current(ctx); err != nil {
			t.Fatal(err)
		}
		return p.Facts()
	}
	f := current()
	if f.Rotation != "off" || !f.VersionCreated.Equal(f.Created) {
		t.Errorf("a key that was never rotated: %+v", f)
	}
	l.ResetCalls()
	for range 5 {
		current()
	}
	if n := l.Calls(""); n != 5 {
		t.Errorf("%d calls for 5 Currents, want one each", n)
	}
	l.Rotate(l.key)
	if f = current(); !f.VersionCreated.After(f.Created) || time.Since(f.VersionCreated) > time.Minute {
		t.Errorf("a key that was rotated now: %+v", f)
	}
	if n := l.Calls("ListKeyRotations"); n != 1 {
		t.Errorf("%d calls of ListKeyRotations for a new version, want 1", n)
	}
	l.Rotate(l.key)
	l.SetFault(awskmstest.Fault{Actions: []string{"ListKeyRotations"}, Code: "ThrottlingException", Times: 1})
	if f = current(); !f.VersionCreated.IsZero() {
		t.Errorf("the age while it could not be had: %v", f.VersionCreated)
	}
	if f = current(); f.VersionCreated.IsZero() {
		t.Error("the age was not asked for again")
	}
}

func TestARotationMayBeSeenLate(t *testing.T) {
	l := newLab(t)
	ctx, p := t.Context(), l.provider(t, awskms.Config{})
	old, err := p.Current(ctx)
	if err != nil {
		t.Fatal(err)
	}
	l.SetLag(l.key, awskmstest.Lag{DescribeKey: true})
	material := l.Rotate(l.key)
	w, err := p.Wrap(ctx, []byte("key"))
	if err != nil || w.Key.Version != material {
		t.Errorf("Wrap says %v, %v: want the version that was really used, %s", w.Key, err, material)
	}
	if ref, err := p.Current(ctx); err != nil || ref != old {
		t.Errorf("Current says %v, %v: want what DescribeKey sees, %v", ref, err, old)
	}
	l.SetLag(l.key, awskmstest.Lag{})
	if ref, err := p.Current(ctx); err != nil || ref != w.Key {
		t.Errorf("Current says %v, %v, want %v", ref, err, w.Key)
	}
}

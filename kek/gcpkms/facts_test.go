package gcpkms_test

import (
	"strings"
	"testing"
	"time"

	"cloud.google.com/go/kms/apiv1/kmspb"
	"github.com/kube-kek/kube-kek/kek"
)

func TestFactsTellOfTheKey(t *testing.T) {
	l := newLab(t)
	p := l.provider(t)
	facts := func() kek.Facts {
		t.Helper()
		if err := current(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		return p.Facts()
	}
	f := facts()
	if f.Key != (kek.KeyRef{ID: l.key, Version: "1"}) || f.State != kek.StateEnabled || f.Rotation != "off" || len(f.Notes) != 0 || !f.DeletionDate.IsZero() {
		t.Errorf("a new key: %+v", f)
	}
	for _, at := range []time.Time{f.Created, f.VersionCreated} {
		if ago := time.Since(at); ago < 0 || ago > time.Minute {
			t.Errorf("made at %v", at)
		}
	}
	l.SetRotation(l.key, 90*24*time.Hour)
	next := time.Now().Add(90 * 24 * time.Hour).UTC().Format("2006-01-02")
	if f := facts(); !strings.HasPrefix(f.Rotation, "every 90 days, next at "+next) {
		t.Errorf("rotation: %s", f.Rotation)
	}
	l.SetProtection(l.key, kmspb.ProtectionLevel_HSM)
	if f := facts(); strings.Join(f.Notes, "") != "The protection level of the key is HSM." {
		t.Errorf("an HSM's key: %q", f.Notes)
	}
	l.Rotate(l.key)
	if g := facts(); g.Key.Version != "2" || g.Created != f.Created || !g.VersionCreated.After(f.VersionCreated) {
		t.Errorf("after a rotation: %+v, before %+v", g, f)
	}
}

func TestAPrimaryVersionThatCannotEncryptIsAWordWithAdvice(t *testing.T) {
	l := newLab(t)
	for _, c := range []struct {
		state kmspb.CryptoKeyVersion_CryptoKeyVersionState
		want  kek.Kind
		facts kek.State
		words string
	}{
		{kmspb.CryptoKeyVersion_DISABLED, kek.KeyDisabled, kek.StateDisabled, "version 1 is DISABLED: enable it"},
		{kmspb.CryptoKeyVersion_DESTROY_SCHEDULED, kek.KeyDisabled, kek.StatePendingDeletion, "restore and enable it"},
		{kmspb.CryptoKeyVersion_DESTROYED, kek.KeyDisabled, kek.StatePendingDeletion, "make another one primary"},
		{kmspb.CryptoKeyVersion_IMPORT_FAILED, kek.KeyDisabled, kek.StateUnknown, "make another one primary"},
		{kmspb.CryptoKeyVersion_PENDING_GENERATION, kek.Unavailable, kek.StateUnknown, "is not ready: PENDING_GENERATION"},
	} {
		t.Run(c.state.String(), func(t *testing.T) {
			l.Enable(l.key)
			p := l.provider(t)
			w, err := p.Wrap(t.Context(), []byte("key"))
			if err != nil {
				t.Fatal(err)
			}
			l.SetState(l.key, "1", c.state)
			if err := current(t.Context(), p); kek.KindOf(err) != c.want || !strings.Contains(err.Error(), c.words) {
				t.Errorf("Current: %v, want %v that says %q", err, c.want, c.words)
			}
			f := p.Facts()
			if f.State != c.facts || f.Key.Version != "1" || (f.State == kek.StatePendingDeletion) == f.DeletionDate.IsZero() {
				t.Errorf("facts: %+v", f)
			}
			if _, err := p.Wrap(t.Context(), []byte("key")); kek.KindOf(err) != c.want {
				t.Errorf("Wrap: %v", err)
			}
			if _, err := p.Unwrap(t.Context(), w); kek.KindOf(err) != c.want {
				t.Errorf("Unwrap: %v", err)
			}
		})
	}
}

func TestAnOldVersionThatIsDisabledDoesNotStopTheKey(t *testing.T) {
	l := newLab(t)
	p := l.provider(t)
	old, err := p.Wrap(t.Context(), []byte("key"))
	if err != nil {
		t.Fatal(err)
	}
	l.Rotate(l.key)
	l.SetState(l.key, "1", kmspb.CryptoKeyVersion_DISABLED)
	if err := current(t.Context(), p); err != nil {
		t.Errorf("Current: %v", err)
	}
	if _, err := p.Unwrap(t.Context(), old); kek.KindOf(err) != kek.KeyDisabled || !strings.Contains(err.Error(), "cryptoKeyVersions/1 is not enabled, current state is: DISABLED") {
		t.Errorf("Unwrap of what the old version wrapped: %v", err)
	}
}

func TestAKeyThatCannotBeAKEKIsRefused(t *testing.T) {
	l := newLab(t)
	for purpose, want := range map[kmspb.CryptoKey_CryptoKeyPurpose]struct {
		kind  kek.Kind
		words string
	}{
		kmspb.CryptoKey_ASYMMETRIC_DECRYPT:  {kek.Invalid, "its purpose is ASYMMETRIC_DECRYPT: a KEK must have the purpose ENCRYPT_DECRYPT"},
		kmspb.CryptoKey_RAW_ENCRYPT_DECRYPT: {kek.Invalid, "its purpose is RAW_ENCRYPT_DECRYPT"},
		kmspb.CryptoKey_MAC:                 {kek.Invalid, "its purpose is MAC"},
		kmspb.CryptoKey_ENCRYPT_DECRYPT:     {kek.KeyDisabled, "it has no primary version: make one"},
	} {
		l.key = l.CreateKeyOf(purpose)
		p := l.provider(t)
		_, wrapErr := p.Wrap(t.Context(), []byte("key"))
		for _, err := range []error{current(t.Context(), p), wrapErr} {
			if kek.KindOf(err) != want.kind || !strings.Contains(err.Error(), want.words) {
				t.Errorf("%s: %v, want %v that says %q", purpose, err, want.kind, want.words)
			}
		}
	}
}

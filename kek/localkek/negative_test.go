package localkek_test

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kube-kek/kube-kek/kek"
	"github.com/kube-kek/kube-kek/kek/awskms"
	"github.com/kube-kek/kube-kek/kek/awskms/awskmstest"
	"github.com/kube-kek/kube-kek/kek/kektest"
	"github.com/kube-kek/kube-kek/kek/localkek"
	"github.com/kube-kek/kube-kek/kek/tinkkeyset"
)

// The negative corpus is generated: from genuine records of two homes, two key
// versions, two local KEKs each and two clusters, every change of one bit, every
// truncation, and every swap of parts between two records that do not share a
// local KEK. None may open.
func TestNoChangedRecordOpens(t *testing.T) {
	secret := bytes.Repeat([]byte("never to be seen"), 2)
	kms := awskmstest.New(awskmstest.Config{})
	endpoint := kms.Start()
	t.Cleanup(endpoint.Close)
	user := kms.AddPrincipal(awskmstest.Principal{Allow: []string{"kms:*"}})
	t.Setenv("AWS_ACCESS_KEY_ID", user.AccessKeyID)
	t.Setenv("AWS_SECRET_ACCESS_KEY", user.SecretAccessKey)
	arn := kms.CreateKey()
	keyset := filepath.Join(t.TempDir(), "keyset.json")
	if _, err := tinkkeyset.Create(keyset); err != nil {
		t.Fatal(err)
	}

	ringOf := func(cluster, current string) *localkek.Ring {
		bound := kek.NewBinding(cluster, nil)
		onAWS, err := awskms.New(t.Context(), awskms.Config{Key: arn, Binding: bound, Endpoint: endpoint.URL})
		if err != nil {
			t.Fatal(err)
		}
		onTink, err := tinkkeyset.New(tinkkeyset.Config{Path: keyset, Binding: bound})
		if err != nil {
			t.Fatal(err)
		}
		homes := map[string]localkek.Home{
			"aws":  {Scheme: awskms.Scheme, ID: arn, Provider: onAWS},
			"tink": {Scheme: tinkkeyset.Scheme, ID: keyset, Provider: onTink},
		}
		c := localkek.DefaultConfig()
		c.Cluster, c.Current = cluster, homes[current]
		delete(homes, current)
		for _, h := range homes {
			c.Previous = append(c.Previous, h)
		}
		return startOutside(t, c)
	}

	type origin struct{ cluster, home, version, local string }
	type record struct {
		origin
		localkek.Sealed
	}
	var records []record
	for _, version := range []string{"1", "2"} {
		for _, cluster := range []string{"east", "west"} {
			for _, home := range []string{"aws", "tink"} {
				for _, local := range []string{"first", "second"} { // a plugin start each
					r := ringOf(cluster, home)
					records = append(records, record{origin{cluster, home, version, local}, mustSeal(t, r, secret)})
				}
			}
		}
		kms.Rotate(arn)
		if _, err := tinkkeyset.Rotate(keyset); err != nil {
			t.Fatal(err)
		}
	}

	r := ringOf("east", "aws") // opens all of the east, of both homes
	cases := 0
	try := func(what string, from origin, s localkek.Sealed) {
		t.Helper()
		cases++
		got, err := r.Open(t.Context(), s)
		if err == nil || got != nil {
			t.Fatalf("%s of %+v: opened", what, from)
		}
		if bytes.Contains([]byte(err.Error()), secret[:8]) {
			t.Fatalf("%s of %+v: plain text in the error", what, from)
		}
		switch kek.KindOf(err) {
		case kek.Invalid, kek.Corrupt, kek.KeyNotFound: // the last: a flipped bit makes a version that there is not
		default:
			t.Fatalf("%s of %+v: %v, want Corrupt, Invalid or KeyNotFound", what, from, err)
		}
	}

	for _, rec := range records {
		if rec.cluster != "east" {
			try("a whole record", rec.origin, rec.Sealed)
			continue
		}
		mustOpen(t, r, rec.Sealed, secret)
		annotation := rec.Annotations[localkek.AnnotationName]
		with := func(keyID string, ciphertext, annotation []byte) localkek.Sealed {
			return localkek.Sealed{KeyID: keyID, Ciphertext: ciphertext, Annotations: map[string][]byte{localkek.AnnotationName: annotation}}
		}
		changed([]byte(rec.KeyID), func(what string, c []byte) {
			try("key ID "+what, rec.origin, with(string(c), rec.Ciphertext, annotation))
		})
		changed(rec.Ciphertext, func(what string, c []byte) {
			try("ciphertext "+what, rec.origin, with(rec.KeyID, c, annotation))
		})
		changed(annotation, func(what string, c []byte) {
			try("annotation "+what, rec.origin, with(rec.KeyID, rec.Ciphertext, c))
		})
		changed([]byte(localkek.AnnotationName), func(what string, c []byte) {
			try("annotation name "+what, rec.origin, localkek.Sealed{KeyID: rec.KeyID, Ciphertext: rec.Ciphertext, Annotations: map[string][]byte{string(c): annotation}})
		})
		try("no annotation", rec.origin, localkek.Sealed{KeyID: rec.KeyID, Ciphertext: rec.Ciphertext})
		more := maps.Clone(rec.Annotations)
		more["more.kube-kek.io"] = []byte("x")
		try("an annotation too many", rec.origin, localkek.Sealed{KeyID: rec.KeyID, Ciphertext: rec.Ciphertext, Annotations: more})
	}

	for _, x := range records {
		for _, y := range records {
			if x.origin == y.origin {
				continue
			}
			for parts := 1; parts < 7; parts++ { // which parts come from y: not none, not all
				s := x.Sealed
				if parts&1 != 0 {
					s.KeyID = y.KeyID
				}
				if parts&2 != 0 {
					s.Ciphertext = y.Ciphertext
				}
				if parts&4 != 0 {
					s.Annotations = y.Annotations
				}
				if same(s, x.Sealed) || same(s, y.Sealed) { // e.g. one key ID for both
					continue
				}
				try(fmt.Sprintf("a swap (%03b) with %+v", parts, y.origin), x.origin, s)
			}
		}
	}
	t.Logf("%d changed records refused", cases)
	if cases < 10_000 {
		t.Errorf("the corpus has %d cases, want at least 10,000", cases)
	}
}

// startOutside runs a ring on real homes, in real time.
func startOutside(t *testing.T, c localkek.Config) *localkek.Ring {
	t.Helper()
	r, err := localkek.New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { r.Run(ctx); close(done) }()
	t.Cleanup(func() { stop(); <-done; r.Close() })
	for range 1000 {
		if _, err = r.KeyID(); err == nil {
			return r
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal(err)
	return nil
}

func same(a, b localkek.Sealed) bool {
	return a.KeyID == b.KeyID && bytes.Equal(a.Ciphertext, b.Ciphertext) &&
		bytes.Equal(a.Annotations[localkek.AnnotationName], b.Annotations[localkek.AnnotationName])
}

// changed calls f with every one-bit change and every truncation of b, and with
// a byte more.
func changed(b []byte, f func(what string, changed []byte)) {
	for i := range len(b) * 8 {
		c := bytes.Clone(b)
		c[i/8] ^= 1 << (i % 8)
		f(fmt.Sprintf("with bit %d flipped", i), c)
	}
	for n := range b {
		f(fmt.Sprintf("cut to %d bytes", n), bytes.Clone(b[:n]))
	}
	f("a byte longer", append(bytes.Clone(b), 0))
}

// What a record takes in etcd beside the Secret itself is paid once per Secret.
func TestTheOverheadOfAnAWSRecordIsAtMost420Bytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const arn = "arn:aws-us-gov:kms:us-gov-west-1:111122223333:key/mrk-1234abcd12ab34cd56ef1234567890ab"
		p := kektest.New(kektest.Config{ID: arn, VersionName: func(int) string {
			return "6ad5f0d31ba6f7f6e3a6e7d1d3a5f27f64d6d1e9c6e2b4c1a2f3e4d5c6b7a890" // 64 hex digits, as AWS's are
		}})
		c := config(awsSized{p})
		c.Current = localkek.Home{Scheme: "awskms", ID: arn, Provider: awsSized{p}}
		sealed := mustSeal(t, start(t, c), bytes.Repeat([]byte{1}, 32))
		n := len(sealed.KeyID) + len(sealed.Ciphertext)
		for name, value := range sealed.Annotations {
			n += len(name) + len(value)
		}
		t.Logf("key ID %d, ciphertext %d, all %d bytes", len(sealed.KeyID), len(sealed.Ciphertext), n)
		if n > 420 {
			t.Errorf("overhead of %d bytes, want at most 420", n)
		}
	})
}

// awsSized pads wraps to the 184 bytes that AWS's Encrypt makes of 32.
type awsSized struct{ kek.Provider }

func (p awsSized) Wrap(ctx context.Context, key []byte) (kek.Wrapped, error) {
	w, err := p.Provider.Wrap(ctx, key)
	if err == nil {
		w.Ciphertext = append(bytes.Repeat([]byte{0}, 184-len(w.Ciphertext)), w.Ciphertext...)
	}
	return w, err
}

func (p awsSized) Unwrap(ctx context.Context, w kek.Wrapped) ([]byte, error) {
	w.Ciphertext = bytes.TrimLeft(w.Ciphertext, "\x00")
	return p.Provider.Unwrap(ctx, w)
}

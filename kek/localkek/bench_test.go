package localkek_test

import (
	"testing"

	"github.com/kube-kek/kube-kek/kek/kektest"
	"github.com/kube-kek/kube-kek/kek/localkek"
)

// What the ring itself costs a request, without gRPC.
func BenchmarkSealAndOpenWarm(b *testing.B) {
	r, err := localkek.New(config(kektest.New(kektest.Config{})))
	if err != nil {
		b.Fatal(err)
	}
	go r.Run(b.Context())
	for {
		if _, err := r.KeyID(); err == nil {
			break
		}
	}
	s := seed()
	sealed, err := r.Seal(b.Context(), s)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("Seal", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := r.Seal(b.Context(), s); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("Open", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := r.Open(b.Context(), sealed); err != nil {
				b.Fatal(err)
			}
		}
	})
}

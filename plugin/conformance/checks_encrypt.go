package conformance

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// The limits of the API in bytes (envelope.go).
const (
	maxKeyID       = 1024
	maxCiphertext  = 1024
	maxAnnotations = 32 << 10
)

var encryptChecks = []check{
	{Info: Info{
		Name: "round-trip", Level: Must, Source: api + "; " + envelope,
		About: "Decrypt gives back what Encrypt was given, with the key_id and annotations that Encrypt answered.",
	}, run: roundTrip},
	{Info: Info{
		Name: "ciphertext-size", Level: Must, Source: api + "; " + envelope + " validateEncryptedDEKSource",
		About: "The ciphertext of a 32-byte seed has 1 to 1024 bytes.",
	}, run: ciphertextSize},
	{Info: Info{
		Name: "ciphertext-hides-plaintext", Level: Must, Source: kep,
		About: "The ciphertext does not show the plaintext.",
	}, run: ciphertextHides},
	{Info: Info{
		Name: "annotation-names", Level: Must, Source: api + " (RFC 1123); " + envelope + " validateAnnotations",
		About: "Each annotation's key is a fully qualified domain name.",
	}, run: annotationNames},
	{Info: Info{
		Name: "annotation-size", Level: Must, Source: api + "; " + envelope + " validateAnnotations",
		About: "The annotations' keys and values have at most 32 KiB together.",
	}, run: annotationSize},
	{Info: Info{
		Name: "annotations-hide-plaintext", Level: Must, Source: api + ": the plugin must encrypt what is sensitive in annotations",
		About: "The annotations, which are stored in clear, show no plaintext and no credential.",
	}, run: annotationsHide},
	{Info: Info{
		Name: "different-plaintexts-differ", Level: Must, Source: kep + ", Encrypt; " + envelope + " generateCacheKey",
		About: "Two plaintexts never give the same ciphertext, key_id and annotations: kube-apiserver keeps decrypted seeds under these.",
	}, run: differentDiffer},
	{Info: Info{
		Name: "same-plaintext-differs", Level: Should, Source: "IND-CPA, which users of a KMS expect; " + ours,
		About: "The same plaintext gives another ciphertext each time.",
	}, run: sameDiffers},
	{Info: Info{
		Name: "round-trip-sizes", Level: Should, Source: api + "; " + envelope + " (kube-apiserver sends 32 bytes alone)",
		About: "A plaintext of another size than 32 bytes comes back, in a ciphertext of at most 1024 bytes, or is refused.",
	}, unless: []string{"ciphertext-size"}, run: roundTripSizes},
	{Info: Info{
		Name: "record-size", Level: Advice, Source: envelope + ": key_id, ciphertext and annotations are stored with every object",
		About: "What the plugin adds to each object in etcd is at most 1 KiB.",
	}, run: recordSize},
}

func roundTrip(ctx context.Context, s *session) (string, error) {
	n := s.few(50)
	for range n {
		rec, err := s.encrypt(ctx, s.conn, s.bytes(32))
		if err != nil {
			return "", err
		}
		if err := s.opens(ctx, s.conn, rec); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("%d seeds of 32 bytes came back as they were", n), nil
}

// each returns the answers to Encrypt of n seeds.
func (s *session) each(ctx context.Context, n int, f func(record) error) (string, error) {
	records, err := s.records(ctx, s.few(n))
	if err != nil {
		return "", err
	}
	for _, r := range records {
		if err := f(r); err != nil {
			return "", err
		}
	}
	r := records[0]
	return fmt.Sprintf("%d calls of Encrypt; the first answered a ciphertext of %d bytes and annotations %s",
		len(records), len(r.Ciphertext), describe(r.Annotations)), nil
}

// describe tells annotations by name and size.
func describe(annotations map[string][]byte) string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(annotations)) {
		parts = append(parts, fmt.Sprintf("%s (%d bytes)", name, len(annotations[name])))
	}
	if len(parts) == 0 {
		return "(none)"
	}
	return strings.Join(parts, ", ")
}

func ciphertextSize(ctx context.Context, s *session) (string, error) {
	return s.each(ctx, 20, func(r record) error {
		if n := len(r.Ciphertext); n < 1 || n > maxCiphertext {
			return breachf("Encrypt of a 32-byte seed answered a ciphertext of %d bytes; kube-apiserver takes 1 to %d", n, maxCiphertext)
		}
		return nil
	})
}

func ciphertextHides(ctx context.Context, s *session) (string, error) {
	return s.each(ctx, 50, func(r record) error {
		if how, shown := only(r.seed).shownIn(r.Ciphertext); shown {
			return breachf("the ciphertext holds a part of its plaintext %s", how)
		}
		return nil
	})
}

func annotationNames(ctx context.Context, s *session) (string, error) {
	return s.each(ctx, 20, func(r record) error {
		for name := range r.Annotations {
			if errs := validation.IsFullyQualifiedDomainName(field.NewPath("annotations"), name); errs != nil {
				return breachf("Encrypt answered an annotation %q: %w; kube-apiserver throws the answer away", name, errs.ToAggregate())
			}
		}
		return nil
	})
}

func annotationSize(ctx context.Context, s *session) (string, error) {
	return s.each(ctx, 20, func(r record) error {
		if n := sizeOf(r.Annotations); n > maxAnnotations {
			return breachf("Encrypt answered annotations of %d bytes, keys and values together; kube-apiserver takes at most %d", n, maxAnnotations)
		}
		return nil
	})
}

func sizeOf(annotations map[string][]byte) int {
	n := 0
	for name, value := range annotations {
		n += len(name) + len(value)
	}
	return n
}

func annotationsHide(ctx context.Context, s *session) (string, error) {
	return s.each(ctx, 50, func(r record) error {
		for name, value := range r.Annotations {
			text := append([]byte(name+" "), value...)
			if how, shown := only(r.seed).shownIn(text); shown {
				return breachf("the annotation %q holds a part of the plaintext %s; annotations are stored in clear", name, how)
			}
			if what, found := looksSecret(string(text)); found {
				return breachf("the annotation %q holds what looks like %s; annotations are stored in clear (the value is not repeated here)", name, what)
			}
		}
		return nil
	})
}

// identity is all by which kube-apiserver tells encrypted seeds apart.
func (r record) identity() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%q %q", r.Ciphertext, r.KeyId)
	for _, name := range slices.Sorted(maps.Keys(r.Annotations)) {
		fmt.Fprintf(&b, " %q=%q", name, r.Annotations[name])
	}
	return b.String()
}

func differentDiffer(ctx context.Context, s *session) (string, error) {
	records, err := s.records(ctx, s.few(200))
	if err != nil {
		return "", err
	}
	if n := len(distinct(records, record.identity)); n != len(records) {
		return "", breachf("%d different plaintexts gave only %d different answers; kube-apiserver would decrypt one object with another's seed", len(records), n)
	}
	return fmt.Sprintf("%d different plaintexts gave as many different answers", len(records)), nil
}

func sameDiffers(ctx context.Context, s *session) (string, error) {
	seed := s.seed()
	records, err := s.encryptAll(ctx, slices.Repeat([][]byte{seed}, s.few(50)))
	if err != nil {
		return "", err
	}
	ciphertexts := distinct(records, func(r record) string { return string(r.Ciphertext) })
	if len(ciphertexts) != len(records) {
		return "", breachf("the same plaintext, encrypted %d times, gave only %d different ciphertexts; use a nonce", len(records), len(ciphertexts))
	}
	return fmt.Sprintf("the same plaintext, encrypted %d times, gave as many ciphertexts", len(records)), nil
}

// roundTripSizes also finds the largest size that the plugin takes.
func roundTripSizes(ctx context.Context, s *session) (string, error) {
	var refused []int
	largest := 0
	try := func(n int) error {
		var rec record
		var answer error
		err := s.withAlive(fmt.Sprintf("an Encrypt of %d bytes", n), func(c *client) error {
			var d time.Duration
			d, answer = took(func() (err error) { rec, err = s.encrypt(ctx, c, s.bytes(n)); return err })
			if hung(d, answer) {
				return breachf("an Encrypt of %d bytes was not answered within %s", n, callTimeout)
			}
			return nil
		})
		if err != nil {
			return err
		}
		if answer != nil {
			refused = append(refused, n)
			return nil
		}
		if len(rec.Ciphertext) < 1 || len(rec.Ciphertext) > maxCiphertext {
			return breachf("Encrypt of %d bytes answered a ciphertext of %d bytes, which kube-apiserver would throw away; refuse what does not fit %d", n, len(rec.Ciphertext), maxCiphertext)
		}
		largest = max(largest, n)
		return s.opens(ctx, s.conn, rec)
	}
	for _, n := range []int{1, 2, 15, 16, 17, 24, 31, 32, 33, 48, 63, 64, 65, 128, 255, 256, 512, 1024, 4096, 64 << 10} {
		if err := try(n); err != nil {
			return "", err
		}
	}
	for low, high := largest, smallestAbove(refused, largest); high-low > 1; {
		mid := (low + high) / 2
		if err := try(mid); err != nil {
			return "", err
		}
		if largest == mid {
			low = mid
		} else {
			high = mid
		}
	}
	seen := fmt.Sprintf("the largest plaintext that Encrypt takes has %d bytes", largest)
	if below := slices.DeleteFunc(refused, func(n int) bool { return n > largest }); len(below) > 0 {
		seen += fmt.Sprintf("; refused below that: %v", below)
	}
	return seen, nil
}

// smallestAbove returns the smallest of all that is above n, n where none is.
func smallestAbove(all []int, n int) int {
	above := slices.DeleteFunc(slices.Clone(all), func(v int) bool { return v <= n })
	if len(above) == 0 {
		return n
	}
	return slices.Min(above)
}

func recordSize(ctx context.Context, s *session) (string, error) {
	rec, err := s.encrypt(ctx, s.conn, s.seed())
	if err != nil {
		return "", err
	}
	n := len(rec.KeyId) + len(rec.Ciphertext) + sizeOf(rec.Annotations)
	seen := fmt.Sprintf("%d bytes are stored with each object: key_id %d, ciphertext %d, annotations %d",
		n, len(rec.KeyId), len(rec.Ciphertext), sizeOf(rec.Annotations))
	if n > 1024 {
		return "", breachf("%s; that is more than 1024", seen)
	}
	return seen, nil
}

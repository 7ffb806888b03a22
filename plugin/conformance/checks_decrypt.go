package conformance

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	v2 "k8s.io/kms/apis/v2"
)

var decryptChecks = []check{
	{Info: Info{
		Name: "ciphertext-changed", Level: Must, Source: kep + ": Decrypt is the inverse of Encrypt alone",
		About: "Decrypt refuses a ciphertext of which a bit was flipped, which was cut or made longer.",
	}, run: ciphertextChanged},
	{Info: Info{
		Name: "key-id-unknown", Level: Must, Source: kep + ", Decrypt: the plugin verifies that it knows the key_id",
		About: "Decrypt refuses a key_id that is not its own: unknown, flipped in a bit, cut, made longer.",
	}, run: keyIDUnknown},
	{Info: Info{
		Name: "annotation-changed", Level: Should, Source: "authenticated data, as etcd is not trusted; " + ours,
		About: "Decrypt refuses an annotation of which a bit was flipped, which was cut, emptied or made longer.",
	}, run: annotationChanged},
	{Info: Info{
		Name: "annotation-missing", Level: Should, Source: "authenticated data, as etcd is not trusted; " + ours,
		About: "Decrypt refuses a record that lost an annotation.",
	}, run: annotationMissing},
	{Info: Info{
		Name: "annotation-added", Level: Advice, Source: "authenticated data, as etcd is not trusted",
		About: "Decrypt refuses a record with an annotation that Encrypt did not give.",
	}, run: annotationAdded},
	{Info: Info{
		Name: "records-swapped", Level: Should, Source: kep + ", Decrypt: no foreign data is tried; " + ours,
		About: "Decrypt refuses a record of which a part comes from another record.",
	}, unless: []string{"key-id-constant", "annotation-changed", "annotation-missing"}, run: recordsSwapped},
	{Info: Info{
		Name: "empty-input", Level: Must, Source: ours,
		About: "A request with empty fields is answered, with an error where it is a Decrypt, and ends nothing.",
	}, run: emptyInput},
	{Info: Info{
		Name: "concurrent-decrypts", Level: Must, Source: envelope + ": there is no single flight in kube-apiserver",
		About: "50 Decrypts of one seed at once, over several connections, all give the seed.",
	}, run: concurrentDecrypts},
}

// variant is a Decrypt that must be refused.
type variant struct {
	what string
	*v2.DecryptRequest
}

// refused holds the plugin to an error for each variant of a record.
func (s *session) refused(ctx context.Context, r record, variants []variant) (string, error) {
	if len(variants) == 0 {
		return "", skipf("the record has nothing that this check could change")
	}
	err := s.with(func(c *client) error {
		err := inParallel(len(variants), 8, func(i int) error { return refuses(ctx, c, r, variants[i]) })
		if n := c.dropped.Load(); err == nil && n > 0 {
			return breachf("while %d changed records were sent the plugin ended the connection %d times; has it crashed?", len(variants), n)
		}
		return err
	})
	if err != nil {
		return "", err
	}
	kinds := distinct(variants, func(v variant) string { what, _, _ := strings.Cut(v.what, ","); return what })
	return fmt.Sprintf("%d changed records were refused: %s", len(variants), strings.Join(firsts(kinds, 8), "; ")), nil
}

func refuses(ctx context.Context, c *client, r record, v variant) error {
	var resp *v2.DecryptResponse
	d, err := took(func() (err error) { resp, err = c.Decrypt(ctx, v.DecryptRequest); return err })
	switch {
	case err == nil && bytes.Equal(resp.Plaintext, r.seed):
		return breachf("Decrypt of a record with %s gave the plaintext, as if nothing had been changed; it must be an error", v.what)
	case err == nil:
		return breachf("Decrypt of a record with %s gave %d bytes that were never encrypted; it must be an error", v.what, len(resp.Plaintext))
	case hung(d, err):
		return breachf("Decrypt of a record with %s did not answer within %s; it must be an error, and soon", v.what, callTimeout)
	}
	return nil
}

// flips returns b with one bit flipped, for each of its bits, or for as many as
// most where it has more.
func (s *session) flips(b []byte, most int) (positions []int, flipped [][]byte) {
	positions = s.rand.Perm(len(b) * 8)
	positions = firsts(positions, most)
	slices.Sort(positions)
	for _, p := range positions {
		f := slices.Clone(b)
		f[p/8] ^= 1 << (p % 8)
		flipped = append(flipped, f)
	}
	return positions, flipped
}

// mangled returns what becomes of b when it is cut, and when bytes are added.
func mangled(b []byte) map[string][]byte {
	all := map[string][]byte{
		"made longer at the end":   append(slices.Clone(b), 0),
		"made longer at the start": append([]byte{0}, b...),
		"doubled":                  append(slices.Clone(b), b...),
	}
	if len(b) > 1 {
		all["cut by its last byte"] = b[:len(b)-1]
		all["cut by its first byte"] = b[1:]
		all["cut by half"] = b[:len(b)/2]
		all["cut to one byte"] = b[:1]
	}
	maps.DeleteFunc(all, func(_ string, v []byte) bool { return bytes.Equal(v, b) })
	return all
}

func (s *session) oneRecord(ctx context.Context) (record, error) {
	return s.encrypt(ctx, s.conn, s.seed())
}

func ciphertextChanged(ctx context.Context, s *session) (string, error) {
	r, err := s.oneRecord(ctx)
	if err != nil {
		return "", err
	}
	var variants []variant
	add := func(what string, ciphertext []byte) {
		req := r.request()
		req.Ciphertext = ciphertext
		variants = append(variants, variant{"the ciphertext " + what, req})
	}
	positions, flipped := s.flips(r.Ciphertext, s.few(512))
	for i, f := range flipped {
		add(fmt.Sprintf("flipped, bit %d of byte %d", positions[i]%8, positions[i]/8), f)
	}
	for _, what := range slices.Sorted(maps.Keys(mangled(r.Ciphertext))) {
		add(what, mangled(r.Ciphertext)[what])
	}
	add("replaced, by as many random bytes", s.bytes(len(r.Ciphertext)))
	return s.refused(ctx, r, variants)
}

func keyIDUnknown(ctx context.Context, s *session) (string, error) {
	r, err := s.oneRecord(ctx)
	if err != nil {
		return "", err
	}
	var variants []variant
	add := func(what, id string) {
		req := r.request()
		req.KeyId = id
		if id != r.KeyId && len(id) > 0 && len(id) <= maxKeyID {
			variants = append(variants, variant{fmt.Sprintf("the key_id %s (%q)", what, id), req})
		}
	}
	add("unknown", "no-such-key")
	add("unknown", "arn:aws:kms:eu-west-1:000000000000:key/00000000-0000-0000-0000-000000000000")
	add("unknown", "1")
	positions, flipped := s.flips([]byte(r.KeyId), s.few(256))
	for i, f := range flipped {
		if positions[i]%8 != 7 && f[positions[i]/8] != 0 { // a protobuf string is UTF-8
			add(fmt.Sprintf("flipped, bit %d of byte %d", positions[i]%8, positions[i]/8), string(f))
		}
	}
	for _, what := range []string{"cut by its last byte", "cut by its first byte", "cut by half", "doubled"} {
		add(what, string(mangled([]byte(r.KeyId))[what]))
	}
	add("made longer", r.KeyId+"x")
	add("made longer by a space", r.KeyId+" ")
	add("in capitals", strings.ToUpper(r.KeyId))
	return s.refused(ctx, r, variants)
}

// noAnnotations is the reason to skip where there is nothing to change.
const noAnnotations = skip("Encrypt answers no annotations")

func annotationChanged(ctx context.Context, s *session) (string, error) {
	r, err := s.oneRecord(ctx)
	if err != nil {
		return "", err
	}
	if len(r.Annotations) == 0 {
		return "", noAnnotations
	}
	var variants []variant
	for _, name := range slices.Sorted(maps.Keys(r.Annotations)) {
		add := func(what string, value []byte) {
			req := r.request()
			req.Annotations[name] = value
			variants = append(variants, variant{fmt.Sprintf("the annotation %s %s", name, what), req})
		}
		value := r.Annotations[name]
		positions, flipped := s.flips(value, max(8, s.few(512)/len(r.Annotations)))
		for i, f := range flipped {
			add(fmt.Sprintf("flipped, bit %d of byte %d", positions[i]%8, positions[i]/8), f)
		}
		for _, what := range slices.Sorted(maps.Keys(mangled(value))) {
			add(what, mangled(value)[what])
		}
		if len(value) > 0 {
			add("emptied", nil)
		}
	}
	return s.refused(ctx, r, variants)
}

func annotationMissing(ctx context.Context, s *session) (string, error) {
	r, err := s.oneRecord(ctx)
	if err != nil {
		return "", err
	}
	if len(r.Annotations) == 0 {
		return "", noAnnotations
	}
	all := r.request()
	all.Annotations = nil
	variants := []variant{{"all annotations missing", all}}
	for name := range r.Annotations {
		gone, renamed := r.request(), r.request()
		delete(gone.Annotations, name)
		delete(renamed.Annotations, name)
		renamed.Annotations["x"+name] = r.Annotations[name]
		variants = append(variants, variant{"the annotation " + name + " missing", gone}, variant{"the annotation " + name + " renamed", renamed})
	}
	return s.refused(ctx, r, variants)
}

func annotationAdded(ctx context.Context, s *session) (string, error) {
	r, err := s.oneRecord(ctx)
	if err != nil {
		return "", err
	}
	req := r.request()
	req.Annotations["added.conformance.kube-kek.io"] = []byte("1")
	return s.refused(ctx, r, []variant{{"an annotation added", req}})
}

func recordsSwapped(ctx context.Context, s *session) (string, error) {
	records, err := s.records(ctx, 8)
	if err != nil {
		return "", err
	}
	a := records[0]
	var variants []variant
	for i, b := range records[1:] {
		variants = append(variants, swaps(fmt.Sprintf("record %d", i+2), a, b)...)
	}
	if len(variants) == 0 {
		return "", skipf("records under one key_id differ in their ciphertext alone")
	}
	return s.refused(ctx, a, variants)
}

// swaps returns a with parts of b, where they differ and neither record comes
// out of it.
func swaps(name string, a, b record) []variant {
	var all []variant
	add := func(what string, edit func(*v2.DecryptRequest)) {
		req := a.request()
		edit(req)
		mixed := record{nil, &v2.EncryptResponse{Ciphertext: req.Ciphertext, KeyId: req.KeyId, Annotations: req.Annotations}}
		if mixed.identity() != a.identity() && mixed.identity() != b.identity() {
			all = append(all, variant{what + " of " + name, req})
		}
	}
	add("the key_id", func(r *v2.DecryptRequest) { r.KeyId = b.KeyId })
	add("the ciphertext", func(r *v2.DecryptRequest) { r.Ciphertext = b.Ciphertext })
	add("all annotations", func(r *v2.DecryptRequest) { r.Annotations = b.Annotations })
	for annotation, value := range b.Annotations {
		add("the annotation "+annotation, func(r *v2.DecryptRequest) { r.Annotations[annotation] = value })
	}
	return all
}

func emptyInput(ctx context.Context, s *session) (string, error) {
	r, err := s.oneRecord(ctx)
	if err != nil {
		return "", err
	}
	noCiphertext, noKeyID := r.request(), r.request()
	noCiphertext.Ciphertext, noKeyID.KeyId = nil, ""
	variants := []variant{{"no fields at all", &v2.DecryptRequest{}}, {"an empty ciphertext", noCiphertext}}
	if r.KeyId != "" {
		variants = append(variants, variant{"an empty key_id", noKeyID})
	}
	if _, err := s.refused(ctx, r, variants); err != nil {
		return "", err
	}
	seen := fmt.Sprintf("%d Decrypts with empty fields were refused; ", len(variants))
	err = s.with(func(c *client) error {
		var resp *v2.EncryptResponse
		d, err := took(func() (err error) { resp, err = c.Encrypt(ctx, &v2.EncryptRequest{}); return err })
		switch {
		case c.dropped.Load() > 0:
			return breachf("on an Encrypt of nothing the plugin ended the connection; has it crashed?")
		case hung(d, err):
			return breachf("an Encrypt of nothing was not answered within %s", callTimeout)
		case err != nil:
			seen += "so was an Encrypt of nothing"
			return nil
		}
		seen += "an Encrypt of nothing came back as such"
		return s.opens(ctx, c, record{nil, resp})
	})
	if err != nil {
		return "", err
	}
	return seen, s.serves(ctx)
}

func concurrentDecrypts(ctx context.Context, s *session) (string, error) {
	r, err := s.oneRecord(ctx)
	if err != nil {
		return "", err
	}
	d, err := took(func() error { return s.decryptAtOnce(ctx, slices.Repeat([]record{r}, 50), 50) })
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("50 Decrypts of one seed at once over 4 connections all gave it, in %s", d.Round(time.Millisecond)), nil
}

// decryptAtOnce decrypts each record, so many at once, over four connections.
func (s *session) decryptAtOnce(ctx context.Context, records []record, atOnce int) error {
	clients := []*client{s.conn}
	for range 3 {
		c, err := s.dial()
		if err != nil {
			return err
		}
		defer c.Close()
		clients = append(clients, c)
	}
	return inParallel(len(records), atOnce, func(i int) error {
		return s.opens(ctx, clients[i%len(clients)], records[i])
	})
}

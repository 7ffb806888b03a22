package conformance_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	v2 "k8s.io/kms/apis/v2"

	"github.com/kube-kek/kube-kek/plugin/conformance"
)

// around is a plugin with some of its methods replaced.
type around struct {
	v2.KeyManagementServiceServer
	status  func(context.Context, *v2.StatusRequest) (*v2.StatusResponse, error)
	encrypt func(context.Context, *v2.EncryptRequest) (*v2.EncryptResponse, error)
	decrypt func(context.Context, *v2.DecryptRequest) (*v2.DecryptResponse, error)
}

func (a around) Status(ctx context.Context, r *v2.StatusRequest) (*v2.StatusResponse, error) {
	if a.status != nil {
		return a.status(ctx, r)
	}
	return a.KeyManagementServiceServer.Status(ctx, r)
}

func (a around) Encrypt(ctx context.Context, r *v2.EncryptRequest) (*v2.EncryptResponse, error) {
	if a.encrypt != nil {
		return a.encrypt(ctx, r)
	}
	return a.KeyManagementServiceServer.Encrypt(ctx, r)
}

func (a around) Decrypt(ctx context.Context, r *v2.DecryptRequest) (*v2.DecryptResponse, error) {
	if a.decrypt != nil {
		return a.decrypt(ctx, r)
	}
	return a.KeyManagementServiceServer.Decrypt(ctx, r)
}

// inner is the sound plugin that a fault is put around.
type inner = v2.KeyManagementServiceServer

// onStatus changes good answers of Status.
func onStatus(edit func(*v2.StatusResponse)) func(inner) inner {
	return func(p inner) inner {
		return around{KeyManagementServiceServer: p, status: func(ctx context.Context, r *v2.StatusRequest) (*v2.StatusResponse, error) {
			st, err := p.Status(ctx, r)
			if err == nil {
				edit(st)
			}
			return st, err
		}}
	}
}

// onRecord changes records on the way out and back on the way in. in returns
// false for what out never made.
func onRecord(out func(plaintext []byte, r *v2.EncryptResponse), in func(r *v2.DecryptRequest) bool, check func(plaintext []byte, r *v2.DecryptRequest) bool) func(inner) inner {
	return func(p inner) inner {
		return around{
			KeyManagementServiceServer: p,
			encrypt: func(ctx context.Context, r *v2.EncryptRequest) (*v2.EncryptResponse, error) {
				resp, err := p.Encrypt(ctx, r)
				if err == nil {
					out(r.Plaintext, resp)
				}
				return resp, err
			},
			decrypt: func(ctx context.Context, r *v2.DecryptRequest) (*v2.DecryptResponse, error) {
				given := clone(r)
				if !in(r) {
					return nil, errors.New("not a record of this plugin")
				}
				resp, err := p.Decrypt(ctx, r)
				if err == nil && check != nil && !check(resp.Plaintext, given) {
					return nil, errors.New("not a record of this plugin")
				}
				return resp, err
			},
		}
	}
}

func clone(r *v2.DecryptRequest) *v2.DecryptRequest {
	return &v2.DecryptRequest{Ciphertext: r.Ciphertext, KeyId: r.KeyId, Annotations: maps.Clone(r.Annotations)}
}

// onKeyID changes the key_id everywhere.
func onKeyID(out func(string) string, in func(string) (string, bool)) func(inner) inner {
	records := onRecord(
		func(_ []byte, r *v2.EncryptResponse) { r.KeyId = out(r.KeyId) },
		func(r *v2.DecryptRequest) bool { id, ok := in(r.KeyId); r.KeyId = id; return ok }, nil)
	answers := onStatus(func(st *v2.StatusResponse) { st.KeyId = out(st.KeyId) })
	return func(p inner) inner { return answers(records(p)) }
}

// memory is what a faulty plugin keeps of each record, by a part of it.
type memory struct {
	mu      sync.Mutex
	records map[string]*v2.EncryptResponse
}

func (m *memory) keep(by string, r *v2.EncryptResponse) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.records == nil {
		m.records = map[string]*v2.EncryptResponse{}
	}
	m.records[by] = &v2.EncryptResponse{Ciphertext: r.Ciphertext, KeyId: r.KeyId, Annotations: maps.Clone(r.Annotations)}
}

func (m *memory) of(by string) *v2.EncryptResponse {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.records[by]
}

// onDecrypt replaces Decrypt.
func onDecrypt(f func(ctx context.Context, p inner, r *v2.DecryptRequest) (*v2.DecryptResponse, error)) func(inner) inner {
	return func(p inner) inner {
		return around{KeyManagementServiceServer: p, decrypt: func(ctx context.Context, r *v2.DecryptRequest) (*v2.DecryptResponse, error) {
			return f(ctx, p, r)
		}}
	}
}

// recalling restores parts of a Decrypt from what was encrypted: a plugin that
// does not look at what it is given.
func recalling(by func(ciphertext []byte, annotations map[string][]byte) string, restore func(was *v2.EncryptResponse, r *v2.DecryptRequest)) func(inner) inner {
	m := &memory{}
	return onRecord(
		func(_ []byte, r *v2.EncryptResponse) { m.keep(by(r.Ciphertext, r.Annotations), r) },
		func(r *v2.DecryptRequest) bool {
			if was := m.of(by(r.Ciphertext, r.Annotations)); was != nil {
				restore(was, r)
			}
			return true
		}, nil)
}

func byCiphertext(ciphertext []byte, _ map[string][]byte) string { return string(ciphertext) }

func bySalt(_ []byte, annotations map[string][]byte) string { return string(annotations[saltName]) }

// fault is a plugin with one breach.
type fault struct {
	name    string
	plant   func(t *testing.T, w *world)
	stories bool     // the breach shows in stories
	asRoot  bool     // it can be seen by root alone
	want    []string // the checks that must fail
}

// check plants the fault in a world of its own and holds it to the suite.
func (f fault) check(t *testing.T) conformance.Report {
	t.Helper()
	w := newWorld(t)
	f.plant(t, w)
	if err := w.start(); err != nil {
		t.Fatal(err)
	}
	o := quick(conformance.Hooks{})
	if f.stories {
		o = quick(w.hooks())
	}
	report, err := conformance.Check(t.Context(), "unix:"+w.socket, o)
	if err != nil {
		t.Fatal(err)
	}
	return report
}

func TestEachPlantedFaultFailsTheCheckThatIsMeantForIt(t *testing.T) {
	for _, faults := range []func() []fault{recordFaults, behaviourFaults, storyFaults} {
		for i, f := range faults() {
			if f.asRoot && os.Geteuid() != 0 {
				continue
			}
			t.Run(f.name, func(t *testing.T) {
				t.Parallel()
				stood := watchForStandstill(t)
				report := f.check(t)
				if !slices.Equal(sorted(failures(t, report)), sorted(f.want)) && stood() > time.Second {
					t.Logf("the machine stood still for %s; once more", stood())
					report = faults()[i].check(t)
				}
				for _, r := range report.Results {
					if slices.Contains(f.want, r.Name) && r.Verdict != conformance.Fail {
						t.Logf("%s: %s: %s", r.Name, r.Verdict, r.Seen)
					}
				}
				wantOnly(t, report, f.want...)
			})
		}
	}
}

// wrapped plants a fault around the toy.
func wrapped(wrap func(inner) inner) func(*testing.T, *world) {
	return func(_ *testing.T, w *world) { w.wrap = wrap }
}

func recordFaults() []fault {
	const other = "plaintext.toy.example.com"
	return []fault{
		{name: "Status and Encrypt answer different key IDs", want: []string{"key-id-agrees"}, stories: true, plant: wrapped(onRecord(
			func(_ []byte, r *v2.EncryptResponse) { r.KeyId += "-encrypt" },
			func(r *v2.DecryptRequest) (ok bool) { r.KeyId, ok = strings.CutSuffix(r.KeyId, "-encrypt"); return ok }, nil))},
		{name: "blank key ID", want: []string{"key-id-size"}, plant: wrapped(onKeyID(
			func(string) string { return "" },
			func(id string) (string, bool) { return "toy:key@1", id == "" }))},
		{name: "key ID of 1025 bytes", want: []string{"key-id-size"}, plant: wrapped(onKeyID(
			func(id string) string { return id + strings.Repeat("x", 1025-len(id)) },
			func(id string) (string, bool) {
				return strings.TrimRight(id, "x"), len(id) == 1025 && strings.HasSuffix(id, "xxx")
			}))},
		{name: "key ID with a credential in it", want: []string{"key-id-public"}, plant: wrapped(onKeyID(
			func(id string) string { return id + "?AKIAIOSFODNN7EXAMPLE" },
			func(id string) (string, bool) { return strings.CutSuffix(id, "?AKIAIOSFODNN7EXAMPLE") }))},
		{name: "key ID with the time in it", want: []string{"key-id-constant"}, plant: wrapped(keyIDWithTime())},
		{name: "ciphertext too large", want: []string{"ciphertext-size"}, plant: wrapped(onRecord(
			func(_ []byte, r *v2.EncryptResponse) { r.Ciphertext = append(r.Ciphertext, make([]byte, 1100)...) },
			func(r *v2.DecryptRequest) (ok bool) {
				r.Ciphertext, ok = bytes.CutSuffix(r.Ciphertext, make([]byte, 1100))
				return ok
			}, nil))},
		{name: "ciphertext with the plaintext behind it", want: []string{"ciphertext-hides-plaintext"}, plant: wrapped(onRecord(
			func(plaintext []byte, r *v2.EncryptResponse) {
				if len(plaintext) == 32 { // of a larger one there would be no room
					r.Ciphertext = append(append(r.Ciphertext, plaintext...), "!!!!!!!"...)
				}
			},
			func(r *v2.DecryptRequest) bool {
				if n := len(r.Ciphertext); n == 60+32+7 {
					r.Ciphertext = r.Ciphertext[:60]
				}
				return true
			},
			func(plaintext []byte, r *v2.DecryptRequest) bool {
				return len(plaintext) != 32 || bytes.HasSuffix(r.Ciphertext, append(plaintext, "!!!!!!!"...))
			}))},
		{name: "the same ciphertext for the same plaintext", want: []string{"same-plaintext-differs"}, plant: wrapped(deterministic())},
		{name: "plaintexts of other sizes cut short", want: []string{"round-trip-sizes"}, plant: wrapped(func(p inner) inner {
			return around{KeyManagementServiceServer: p, encrypt: func(ctx context.Context, r *v2.EncryptRequest) (*v2.EncryptResponse, error) {
				r.Plaintext = r.Plaintext[:min(32, len(r.Plaintext))]
				return p.Encrypt(ctx, r)
			}}
		})},
		{name: "plaintext comes back with a byte too many", want: []string{"round-trip"}, plant: wrapped(onDecrypt(
			func(ctx context.Context, p inner, r *v2.DecryptRequest) (*v2.DecryptResponse, error) {
				resp, err := p.Decrypt(ctx, r)
				if err == nil {
					resp.Plaintext = append(resp.Plaintext, 0)
				}
				return resp, err
			}))},
		{name: "annotation whose key is no domain name", want: []string{"annotation-names"}, plant: wrapped(onRecord(
			func(_ []byte, r *v2.EncryptResponse) {
				r.Annotations["Salt"] = r.Annotations[saltName]
				delete(r.Annotations, saltName)
			},
			func(r *v2.DecryptRequest) bool {
				salt, ok := r.Annotations["Salt"]
				if ok {
					delete(r.Annotations, "Salt")
					r.Annotations[saltName] = salt
				}
				return ok
			}, nil))},
		{name: "annotations beyond 32 KiB", want: []string{"annotation-size"}, plant: wrapped(withAnnotation(other, func([]byte) []byte { return make([]byte, 33<<10) }))},
		{name: "annotation with the plaintext in hex", want: []string{"annotations-hide-plaintext"}, plant: wrapped(withAnnotation(other, func(p []byte) []byte { return fmt.Appendf(nil, "%x", p) }))},
		{name: "accepts a flipped ciphertext", want: []string{"ciphertext-changed"}, plant: wrapped(recalling(bySalt,
			func(was *v2.EncryptResponse, r *v2.DecryptRequest) {
				if differInOneByte(was.Ciphertext, r.Ciphertext) {
					r.Ciphertext = was.Ciphertext
				}
			}))},
		{name: "Decrypt ignores the key ID", want: []string{"key-id-unknown"}, stories: true, plant: wrapped(recalling(byCiphertext,
			func(was *v2.EncryptResponse, r *v2.DecryptRequest) {
				if len(r.KeyId) >= 1 && len(r.KeyId) <= 1024 {
					r.KeyId = was.KeyId
				}
			}))},
		{name: "accepts a flipped annotation", want: []string{"annotation-changed"}, stories: true, plant: wrapped(recalling(byCiphertext,
			func(was *v2.EncryptResponse, r *v2.DecryptRequest) {
				if _, ok := r.Annotations[saltName]; ok && len(r.Annotations) == 1 {
					r.Annotations = maps.Clone(was.Annotations)
				}
			}))},
		{name: "does not need its annotation", want: []string{"annotation-missing"}, plant: wrapped(recalling(byCiphertext,
			func(was *v2.EncryptResponse, r *v2.DecryptRequest) {
				if _, ok := r.Annotations[saltName]; !ok {
					r.Annotations = maps.Clone(was.Annotations)
				}
			}))},
		{name: "takes the ciphertext of one record with the annotations of another", want: []string{"records-swapped"}, plant: wrapped(swapping())},
	}
}

func differInOneByte(a, b []byte) bool {
	n := 0
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			n++
		}
	}
	return len(a) == len(b) && n == 1
}

// withAnnotation adds an annotation that is a function of the plaintext, and
// checks it.
func withAnnotation(name string, value func(plaintext []byte) []byte) func(inner) inner {
	return onRecord(
		func(plaintext []byte, r *v2.EncryptResponse) { r.Annotations[name] = value(plaintext) },
		func(r *v2.DecryptRequest) bool { _, ok := r.Annotations[name]; delete(r.Annotations, name); return ok },
		func(plaintext []byte, r *v2.DecryptRequest) bool {
			return bytes.Equal(r.Annotations[name], value(plaintext))
		})
}

func keyIDWithTime() func(inner) inner {
	issued := sync.Map{}
	return onKeyID(
		func(id string) string {
			id += fmt.Sprintf("#%d", time.Now().UnixMicro())
			issued.Store(id, true)
			return id
		},
		func(id string) (string, bool) {
			_, ok := issued.Load(id)
			return strings.Split(id+"#", "#")[0], ok
		})
}

func deterministic() func(inner) inner {
	m := &memory{}
	return func(p inner) inner {
		return around{KeyManagementServiceServer: p, encrypt: func(ctx context.Context, r *v2.EncryptRequest) (*v2.EncryptResponse, error) {
			if was := m.of(string(r.Plaintext)); was != nil {
				return was, nil
			}
			resp, err := p.Encrypt(ctx, r)
			if err == nil {
				m.keep(string(r.Plaintext), resp)
			}
			return resp, err
		}}
	}
}

// swapping takes any annotation that was once given, with any record.
func swapping() func(inner) inner {
	salts, records := sync.Map{}, &memory{}
	return onRecord(
		func(_ []byte, r *v2.EncryptResponse) {
			salts.Store(string(r.Annotations[saltName]), true)
			records.keep(string(r.Ciphertext), r)
		},
		func(r *v2.DecryptRequest) bool {
			was := records.of(string(r.Ciphertext))
			if _, ok := salts.Load(string(r.Annotations[saltName])); ok && was != nil && len(r.Annotations) == 1 {
				r.Annotations = maps.Clone(was.Annotations)
			}
			return true
		}, nil)
}

package conformance_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	v2 "k8s.io/kms/apis/v2"
)

// is reads the KMS's state.
func (k *kms) is(f func(*kms) bool) (yes bool) {
	k.do(func() { yes = f(k) })
	return yes
}

func down(k *kms) bool     { return k.down }
func disabled(k *kms) bool { return k.disabled }

// perStart plants a fault that can see the world, anew at each start.
func perStart(wrap func(w *world) func(inner) inner) func(*testing.T, *world) {
	return func(_ *testing.T, w *world) {
		w.wrap = func(p inner) inner { return wrap(w)(p) }
	}
}

// statusWhile replaces Status while the KMS is in a state.
func statusWhile(state func(*kms) bool, f func(ctx context.Context, p inner, r *v2.StatusRequest) (*v2.StatusResponse, error)) func(*testing.T, *world) {
	return perStart(func(w *world) func(inner) inner {
		return func(p inner) inner {
			return around{KeyManagementServiceServer: p, status: func(ctx context.Context, r *v2.StatusRequest) (*v2.StatusResponse, error) {
				if w.kms.is(state) {
					return f(ctx, p, r)
				}
				return p.Status(ctx, r)
			}}
		}
	})
}

// latching plants a plugin that fails for good once it was asked in a state.
func latching(state func(*kms) bool) func(*testing.T, *world) {
	return perStart(func(w *world) func(inner) inner {
		var dead atomic.Bool
		return func(p inner) inner {
			return around{KeyManagementServiceServer: p, status: func(ctx context.Context, r *v2.StatusRequest) (*v2.StatusResponse, error) {
				if w.kms.is(state) {
					dead.Store(true)
				}
				if dead.Load() {
					return nil, errors.New("credentials have ended")
				}
				return p.Status(ctx, r)
			}}
		}
	})
}

func storyFaults() []fault {
	faults := []fault{
		{name: "constant key ID over a rotation", want: []string{"rotation-seen"}, plant: wrapped(constantKeyID())},
		{name: "key ID flips and flops after a rotation", want: []string{"rotation-no-flip-flop"}, plant: func(_ *testing.T, w *world) { w.kms.flaps = true }},
		{name: "Status moves after Encrypt in a rotation", want: []string{"rotation-agrees"}, plant: wrapped(lateStatus(500 * time.Millisecond))},
		{name: "old records unreadable after a rotation", want: []string{"rotation-old-readable"}, plant: perStart(func(w *world) func(inner) inner {
			return onDecrypt(func(ctx context.Context, p inner, r *v2.DecryptRequest) (*v2.DecryptResponse, error) {
				if st, err := p.Status(ctx, nil); err == nil && strings.HasPrefix(r.KeyId, "toy:key@") && r.KeyId < st.KeyId {
					return nil, errors.New("only the current key version is known")
				}
				return p.Decrypt(ctx, r)
			})
		})},
		{name: "tries other keys than the one that is named", want: []string{"rotation-records-mixed"}, plant: perStart(func(w *world) func(inner) inner {
			return onDecrypt(func(ctx context.Context, p inner, r *v2.DecryptRequest) (*v2.DecryptResponse, error) {
				resp, err := p.Decrypt(ctx, r)
				versions := 0
				w.kms.do(func() { versions = len(w.kms.keys) })
				for v := 1; err != nil && v <= versions && (r.KeyId == keyID(1) || r.KeyId == keyID(versions)); v++ {
					other := clone(r)
					other.KeyId = keyID(v)
					if resp, otherErr := p.Decrypt(ctx, other); otherErr == nil {
						return resp, nil
					}
				}
				return resp, err
			})
		})},
		{name: "key ID that names the process", want: []string{"restart-same-key-id"}, plant: func(_ *testing.T, w *world) {
			starts := 0
			w.wrap = func(p inner) inner {
				starts++
				n := starts
				return onKeyID(
					func(id string) string { return fmt.Sprintf("%s#%d", id, n) },
					func(id string) (string, bool) {
						for i := range n {
							if before, ok := strings.CutSuffix(id, fmt.Sprintf("#%d", i+1)); ok {
								return before, true
							}
						}
						return "", false
					})(p)
			}
		}},
		{name: "does not start over a stale socket", want: []string{"kill"}, plant: func(_ *testing.T, w *world) {
			w.listen = func(socket string) (net.Listener, error) {
				lis, err := net.Listen("unix", socket)
				if err != nil {
					return nil, err
				}
				return lis, os.Chmod(socket, 0o600)
			}
		}},
		{name: "Status hangs without the KMS", want: []string{"outage-status-answers"}, plant: statusWhile(down,
			func(ctx context.Context, p inner, r *v2.StatusRequest) (*v2.StatusResponse, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			})},
		{name: "sick healthz beside a key ID without the KMS", want: []string{"outage-status-clear"}, plant: statusWhile(down,
			func(ctx context.Context, p inner, r *v2.StatusRequest) (*v2.StatusResponse, error) {
				return &v2.StatusResponse{Version: "v2", Healthz: "no KMS", KeyId: keyID(2)}, nil
			})},
		{name: "another key ID without the KMS", want: []string{"outage-key-id"}, plant: statusWhile(down,
			func(ctx context.Context, p inner, r *v2.StatusRequest) (*v2.StatusResponse, error) {
				return &v2.StatusResponse{Version: "v2", Healthz: "ok", KeyId: "fallback"}, nil
			})},
		{name: "Decrypt hangs without the KMS", want: []string{"outage-decrypt-ends"}, plant: perStart(func(w *world) func(inner) inner {
			return onDecrypt(func(ctx context.Context, p inner, r *v2.DecryptRequest) (*v2.DecryptResponse, error) {
				if w.kms.is(down) {
					<-ctx.Done()
					return nil, ctx.Err()
				}
				return p.Decrypt(ctx, r)
			})
		})},
		{name: "is never well again after an outage", want: []string{"outage-recovery"}, plant: latching(down)},
		{name: "does not start without the KMS", want: []string{"outage-plugin-restart"}, plant: func(_ *testing.T, w *world) {
			w.refuseStart = func() bool { return w.kms.is(down) }
		}},
		{name: "Status is good though the key is disabled", want: []string{"disabled-status"}, plant: statusWhile(disabled,
			func(ctx context.Context, p inner, r *v2.StatusRequest) (*v2.StatusResponse, error) {
				return &v2.StatusResponse{Version: "v2", Healthz: "ok", KeyId: keyID(2)}, nil
			})},
		{name: "sick healthz beside a key ID once the key is disabled", want: []string{"disabled-status-clear"}, plant: statusWhile(disabled,
			func(ctx context.Context, p inner, r *v2.StatusRequest) (*v2.StatusResponse, error) {
				return &v2.StatusResponse{Version: "v2", Healthz: "disabled", KeyId: keyID(2)}, nil
			})},
		{name: "decrypts from memory though the key is disabled", want: []string{"disabled-access"}, plant: perStart(func(*world) func(inner) inner { return rememberPlaintexts() })},
		{name: "is never well again after the key was disabled", want: []string{"enabled-again"}, plant: latching(disabled)},
	}
	for i := range faults {
		faults[i].stories = true
	}
	return faults
}

// constantKeyID hides the version.
func constantKeyID() func(inner) inner {
	m := &memory{}
	records := onRecord(
		func(_ []byte, r *v2.EncryptResponse) {
			m.keep(string(r.Ciphertext), r)
			r.KeyId = "toy:key"
		},
		func(r *v2.DecryptRequest) bool {
			was := m.of(string(r.Ciphertext))
			if was == nil || r.KeyId != "toy:key" {
				return false
			}
			r.KeyId = was.KeyId
			return true
		}, nil)
	answers := onStatus(func(st *v2.StatusResponse) { st.KeyId = "toy:key" })
	return func(p inner) inner { return answers(records(p)) }
}

// lateStatus answers the key_id before the current one for a while.
func lateStatus(d time.Duration) func(inner) inner {
	var mu sync.Mutex
	var old, current string
	var since time.Time
	return onStatus(func(st *v2.StatusResponse) {
		mu.Lock()
		defer mu.Unlock()
		if st.KeyId != current {
			old, current, since = current, st.KeyId, time.Now()
		}
		if old != "" && time.Since(since) < d {
			st.KeyId = old
		}
	})
}

// rememberPlaintexts gives again what it has decrypted once.
func rememberPlaintexts() func(inner) inner {
	var opened sync.Map
	return onDecrypt(func(ctx context.Context, p inner, r *v2.DecryptRequest) (*v2.DecryptResponse, error) {
		name := fmt.Sprintf("%q %q %q", r.Ciphertext, r.KeyId, r.Annotations)
		resp, err := p.Decrypt(ctx, r)
		if err == nil {
			opened.Store(name, resp)
		} else if was, ok := opened.Load(name); ok {
			return was.(*v2.DecryptResponse), nil
		}
		return resp, err
	})
}

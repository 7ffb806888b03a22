package azurekv

import (
	"context"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azkeys"
	"github.com/kube-kek/kube-kek/kek"
)

// rotation is what the vault tells of a version's rotation policy.
type rotation struct {
	of      string
	setting string
	notes   []string
}

// rotationOf asks for the rotation policy when it sees a version for the first
// time. Nothing depends on the answer: a refusal becomes a note, and an outage
// is tried again at the next Current.
func (p *Provider) rotationOf(ctx context.Context, version string) rotation {
	p.mu.Lock()
	known := p.rotation
	p.mu.Unlock()
	if known.of == version {
		return known
	}
	r := rotation{of: version, setting: "off"}
	got, err := await(ctx, func() (azkeys.GetKeyRotationPolicyResponse, error) {
		return p.keys.GetKeyRotationPolicy(ctx, p.key.name, nil)
	})
	if err != nil {
		r.setting = ""
		switch kind := kek.KindOf(p.fail(kek.OpCurrent, "", err)); {
		case kind == kek.Denied:
			r.notes = []string{"The rotation setting is not known: keys/getrotationpolicy is denied."}
		case kind.Temporary():
			return r
		}
	}
	for _, l := range got.LifetimeActions {
		if l == nil || l.Trigger == nil || l.Action == nil || l.Action.Type == nil || !strings.EqualFold(string(*l.Action.Type), string(azkeys.KeyRotationPolicyActionRotate)) {
			continue
		}
		if l.Trigger.TimeAfterCreate != nil {
			r.setting = "every " + days(*l.Trigger.TimeAfterCreate)
		} else if l.Trigger.TimeBeforeExpiry != nil {
			r.setting = days(*l.Trigger.TimeBeforeExpiry) + " before a version expires"
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rotation = r
	return r
}

// days words a duration of ISO 8601 where it is one of days.
func days(duration string) string {
	if n := strings.TrimSuffix(strings.TrimPrefix(duration, "P"), "D"); "P"+n+"D" == duration {
		return n + " days"
	}
	return duration
}

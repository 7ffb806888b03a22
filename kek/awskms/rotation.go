package awskms

import (
	"context"
	"fmt"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/kube-kek/kube-kek/kek"
)

// rotation is what KMS tells of a version beyond its name.
type rotation struct {
	of             kek.KeyRef
	versionCreated time.Time
	setting        string // "every 365 days", "off", "" if not told
	notes          []string
}

// rotationOf asks for a version's age and the rotation setting when it sees the
// version for the first time, and remembers the answer. None of it is needed:
// a refusal becomes a note, and an outage is tried again at the next Current.
func (p *Provider) rotationOf(ctx context.Context, ref kek.KeyRef, keyCreated time.Time) rotation {
	p.mu.Lock()
	known := p.rotation
	p.mu.Unlock()
	if known.of == ref {
		return known
	}
	r, complete := rotation{of: ref}, true
	lacks := func(permission, what string, err error) {
		switch kind, _ := judge(err); {
		case kind == kek.Denied:
			r.notes = append(r.notes, fmt.Sprintf("%s is not known: %s is denied.", what, permission))
		case kind.Temporary():
			complete = false
		}
	}

	list, err := p.kms.ListKeyRotations(ctx, &kms.ListKeyRotationsInput{
		KeyId: &ref.ID, IncludeKeyMaterial: types.IncludeKeyMaterialAllKeyMaterial, Limit: aws.Int32(1000),
	})
	if err != nil {
		lacks("kms:ListKeyRotations", "The age of the current key version", err)
	} else {
		for _, entry := range list.Rotations {
			if aws.ToString(entry.KeyMaterialId) != ref.Version {
				continue
			}
			// The first key material has no rotation date: it is as old as the key.
			r.versionCreated = keyCreated
			if entry.RotationDate != nil {
				r.versionCreated = *entry.RotationDate
			}
		}
	}

	status, err := p.kms.GetKeyRotationStatus(ctx, &kms.GetKeyRotationStatusInput{KeyId: &ref.ID})
	switch {
	case err != nil:
		lacks("kms:GetKeyRotationStatus", "The rotation setting", err)
	case !status.KeyRotationEnabled:
		r.setting = "off"
	case status.RotationPeriodInDays != nil:
		r.setting = fmt.Sprintf("every %d days", *status.RotationPeriodInDays)
	default:
		r.setting = "on"
	}
	if complete {
		p.mu.Lock()
		p.rotation = r
		p.mu.Unlock()
	}
	return r
}

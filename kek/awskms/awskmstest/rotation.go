package awskmstest

import (
	"strconv"
	"time"
)

// maxRotations is how often AWS rotates one key on demand.
const maxRotations = 25

// forRotation finds a key whose rotation may be spoken of.
func (s *Server) forRotation(id string) (*key, *apiError) {
	k, e := s.findByID(id)
	if e != nil {
		return nil, e
	}
	if k.spec != symmetric {
		return nil, refuse("UnsupportedOperationException", "%s is not a symmetric encryption key.", k.arn)
	}
	return k, nil
}

func (s *Server) rotateKeyOnDemand(in keyRequest) (any, *apiError) {
	k, e := s.forRotation(in.KeyId)
	if e != nil {
		return nil, e
	}
	if e := k.usable(); e != nil {
		return nil, e
	}
	if len(k.materials) > maxRotations {
		return nil, refuse("LimitExceededException", "%s has been rotated on demand %d times.", k.arn, maxRotations)
	}
	k.rotate()
	return keyReply{k.arn}, nil
}

type enableKeyRotationRequest struct {
	KeyId                string
	RotationPeriodInDays *int
}

func (s *Server) enableKeyRotation(in enableKeyRotationRequest) (any, *apiError) {
	period := 365
	if in.RotationPeriodInDays != nil {
		period = *in.RotationPeriodInDays
	}
	if e := outOfRange("rotationPeriodInDays", period, 90, 2560); e != nil {
		return nil, e
	}
	return s.setPeriod(in.KeyId, period)
}

func (s *Server) disableKeyRotation(in keyRequest) (any, *apiError) { return s.setPeriod(in.KeyId, 0) }

func (s *Server) setPeriod(id string, period int) (any, *apiError) {
	k, e := s.forRotation(id)
	if e != nil {
		return nil, e
	}
	if e := k.usable(); e != nil {
		return nil, e
	}
	k.period = period
	return struct{}{}, nil
}

type rotationStatusReply struct {
	KeyId                string
	KeyRotationEnabled   bool
	NextRotationDate     *epoch `json:",omitempty"`
	RotationPeriodInDays int    `json:",omitempty"`
}

func (s *Server) getKeyRotationStatus(in keyRequest) (any, *apiError) {
	k, e := s.forRotation(in.KeyId)
	if e != nil {
		return nil, e
	}
	reply := rotationStatusReply{KeyId: k.arn, KeyRotationEnabled: k.period > 0 && k.state != PendingDeletion}
	if reply.KeyRotationEnabled {
		reply.RotationPeriodInDays = k.period
		reply.NextRotationDate = &epoch{k.created.AddDate(0, 0, k.period)}
	}
	return reply, nil
}

type listKeyRotationsRequest struct {
	KeyId              string
	IncludeKeyMaterial string
	Limit              *int
	Marker             string
}

type listKeyRotationsReply struct {
	Rotations  []rotation
	Truncated  bool
	NextMarker string `json:",omitempty"`
}

type rotation struct {
	KeyId            string
	KeyMaterialId    string `json:",omitempty"`
	KeyMaterialState string
	RotationDate     *epoch `json:",omitempty"`
	RotationType     string `json:",omitempty"`
}

func (s *Server) listKeyRotations(in listKeyRotationsRequest) (any, *apiError) {
	limit := 100
	if in.Limit != nil {
		limit = *in.Limit
	}
	if e := outOfRange("limit", limit, 1, 1000); e != nil {
		return nil, e
	}
	k, e := s.forRotation(in.KeyId)
	if e != nil {
		return nil, e
	}
	all := k.rotations(s)
	if in.IncludeKeyMaterial != "ALL_KEY_MATERIAL" {
		all = all[1:]
	}
	start := 0
	if in.Marker != "" {
		n, err := strconv.Atoi(in.Marker)
		if err != nil || n < 0 || n > len(all) {
			return nil, refuse("InvalidMarkerException", "Could not deserialize marker '%s'", in.Marker)
		}
		start = n
	}
	reply := listKeyRotationsReply{Rotations: all[start:]}
	if len(reply.Rotations) > limit {
		reply.Rotations, reply.Truncated, reply.NextMarker = reply.Rotations[:limit], true, strconv.Itoa(start+limit)
	}
	return reply, nil
}

// rotations lists the materials in the order of their making. The first has no
// date and no type, as at AWS.
func (k *key) rotations(s *Server) []rotation {
	out := make([]rotation, len(k.materials))
	for i, m := range k.materials {
		out[i] = rotation{KeyId: k.arn, KeyMaterialId: s.materialID(m), KeyMaterialState: "NON_CURRENT"}
		if i > 0 {
			out[i].RotationDate, out[i].RotationType = &epoch{m.made.Truncate(time.Millisecond)}, "ON_DEMAND"
		}
	}
	out[len(out)-1].KeyMaterialState = "CURRENT"
	return out
}

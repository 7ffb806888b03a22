package azurekvtest

import (
	"net/http"
	"slices"
	"strconv"
	"time"
)

// Fault is something that goes wrong. Of the effects at most one besides
// Latency should be set; with Latency alone the call succeeds, late.
type Fault struct {
	Actions   []string // "GetKey", ActionToken, …; none: those of the vault
	Principal string   // the caller's client ID; "": every caller
	Times     int      // how many calls it befalls; 0: until SetFault is called again

	Latency time.Duration // waits first

	Code, Inner string        // answers with this error, e.g. "Throttled", and the one within
	Message     string        // its text
	Status      int           // its HTTP status; that of Body (200 if 0)
	RetryAfter  time.Duration // sends a Retry-After header, in whole seconds

	Body []byte // answers with these bytes, whatever they are
	Hang bool   // does not answer until the client leaves or the faults are changed
	Drop bool   // cuts the connection
}

// Unauthorized is the fault of a vault that takes no token, as when they have
// ended: with a challenge.
func Unauthorized() Fault {
	return Fault{Status: http.StatusUnauthorized, Code: "Unauthorized", Message: "[TokenExpired] Error validating token: 'S2S12086'."}
}

// befalls reports whether a fault is one of the call.
func (f *Fault) befalls(c *Call) bool {
	if f.Principal != "" && f.Principal != c.Principal {
		return false
	}
	if len(f.Actions) == 0 {
		return c.Action != ActionDiscovery && c.Action != ActionToken && c.Action != ActionMetadata
	}
	return slices.Contains(f.Actions, c.Action)
}

// SetFault replaces all faults. The first that fits a call befalls it. Without
// an argument all is well again. Calls that hang are cut off.
func (s *Server) SetFault(faults ...Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = nil
	for _, f := range faults {
		s.faults = append(s.faults, &f)
	}
	close(s.unhang)
	s.unhang = make(chan struct{})
}

// takeFault returns the fault that befalls the call, and counts it.
func (s *Server) takeFault(c *Call) (f Fault, unhang chan struct{}, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, f := range s.faults {
		if !f.befalls(c) {
			continue
		}
		if f.Times > 0 {
			if f.Times--; f.Times == 0 {
				s.faults = slices.Delete(slices.Clone(s.faults), i, i+1)
			}
		}
		return *f, s.unhang, true
	}
	return Fault{}, nil, false
}

// applyFault reports whether the call was answered, or will never be, by a fault.
func (s *Server) applyFault(w http.ResponseWriter, r *http.Request, c *Call) bool {
	f, unhang, ok := s.takeFault(c)
	if !ok {
		return false
	}
	select {
	case <-time.After(f.Latency):
	case <-r.Context().Done():
	}
	if f.Hang {
		select {
		case <-unhang:
		case <-r.Context().Done():
		}
	}
	if f.Hang || f.Drop {
		panic(http.ErrAbortHandler)
	}
	if f.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(f.RetryAfter/time.Second)))
	}
	switch {
	case f.Code != "":
		s.setCode(c, f.Code)
		if f.Status == http.StatusUnauthorized {
			s.challenge(w, c.Action)
		}
		refuse(f.Status, f.Code, "%s", f.Message).within(f.Inner).write(w, c.Action)
	case f.Body != nil || f.Status != 0:
		if f.Status != 0 {
			w.WriteHeader(f.Status)
		}
		_, _ = w.Write(f.Body)
	default:
		return false
	}
	return true
}

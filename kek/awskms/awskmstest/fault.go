package awskmstest

import (
	"net/http"
	"slices"
	"strconv"
	"time"
)

// Fault is something that goes wrong. Of the effects at most one besides
// Latency should be set; with Latency alone the call succeeds, late.
type Fault struct {
	Actions   []string // "Decrypt", "AssumeRole", …; none: every action
	Principal string   // the caller's ARN; "": every caller
	Times     int      // how many calls it befalls; 0: until SetFault is called again

	Latency time.Duration // waits first

	Code       string        // answers with this error, e.g. "ThrottlingException"
	Message    string        // its text
	Status     int           // its HTTP status if not the usual one of Code; that of Body (200 if 0)
	RetryAfter time.Duration // sends a Retry-After header, in whole seconds

	Body []byte // answers with these bytes, whatever they are
	Hang bool   // does not answer until the client leaves or the faults are changed
	Drop bool   // cuts the connection
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
		if len(f.Actions) > 0 && !slices.Contains(f.Actions, c.Action) || f.Principal != "" && f.Principal != c.Principal {
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
func (s *Server) applyFault(w http.ResponseWriter, r *http.Request, c *Call, writeError func(http.ResponseWriter, string, *apiError)) bool {
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
		e := refuse(f.Code, "%s", f.Message)
		if f.Status != 0 {
			e.status = f.Status
		}
		s.setCode(c, f.Code)
		writeError(w, c.RequestID, e)
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

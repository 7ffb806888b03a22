package config

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The bounds of the fields, as their comments name them.
const (
	maxLease    = 7 * 24 * time.Hour // longer, and a disabled key is a key in use
	minRenew    = time.Second
	maxRenew    = 24 * time.Hour
	maxUses     = 1 << 32
	maxCache    = 1 << 16
	minAttempt  = 10 * time.Millisecond
	apiserver   = 3 * time.Second // kube-apiserver's own timeout of a call
	maxPath     = 107             // sockaddr_un's sun_path without its final zero
	maxPrevious = 16
	maxBinding  = 8
	maxUIDs     = 16
	maxEpoch    = 999
)

// word reports whether s is 1 to most letters, digits and characters of more,
// with a letter or digit at both ends.
func word(s string, most int, more string) bool {
	return len(s) >= 1 && len(s) <= most && only(s, more) && only(s[:1]+s[len(s)-1:], "")
}

// only reports whether s holds nothing but ASCII letters, digits and more.
func only(s, more string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool {
		return (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z') && !strings.ContainsRune(more, r)
	})
}

// Validate returns what is wrong with c, as far as c itself can tell: it opens
// no file and asks no network. Which schemes exist and what their keys look
// like, the homes know.
func (c Config) Validate() []Mistake {
	v := &validator{}
	v.check(c.APIVersion == APIVersion, "apiVersion", "must be %s%s", APIVersion, not(c.APIVersion))
	if v.required("cluster", c.Cluster) {
		v.check(word(c.Cluster, 63, "-_."), "cluster",
			"must be 1 to 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends%s", not(c.Cluster))
	}
	v.binding(c.Binding)
	v.keks(c)
	v.times(c)
	v.check(c.MaxUses >= 1 && c.MaxUses <= maxUses, "maxUses", "must be 1 to %d, not %d", uint64(maxUses), c.MaxUses)
	v.check(c.CacheSize >= 1 && c.CacheSize <= maxCache, "cacheSize", "must be 1 to %d, not %d", maxCache, c.CacheSize)
	v.socket(c.Socket)
	v.health(c.Health)
	if c.Audit.Path != "" {
		v.file("audit.path", c.Audit.Path)
	} else {
		v.check(!c.Audit.Required, "audit.required", "needs audit.path")
	}
	v.distinctFiles(c)
	v.oneOf("log.format", c.Log.Format, "json", "text")
	v.oneOf("log.level", c.Log.Level, "debug", "info", "warn", "error")
	return v.found
}

type validator struct{ found []Mistake }

func (v *validator) add(path, format string, args ...any) {
	v.found = append(v.found, Mistake{path, fmt.Sprintf(format, args...)})
}

func (v *validator) check(ok bool, path, format string, args ...any) {
	if !ok {
		v.add(path, format, args...)
	}
}

func (v *validator) required(path, s string) bool {
	v.check(s != "", path, "required")
	return s != ""
}

func (v *validator) oneOf(path, s string, choices ...string) {
	v.check(slices.Contains(choices, s), path, "must be %s%s", strings.Join(choices, ", "), not(s))
}

func (v *validator) file(field, name string) {
	switch {
	case !path.IsAbs(name):
		v.add(field, "must be an absolute path%s", not(name))
	case path.Clean(name) != name:
		v.add(field, "must be a plain path%s; write %s", not(name), path.Clean(name))
	case strings.ContainsRune(name, 0):
		v.add(field, "holds a zero byte")
	}
}

// distinctFiles keeps one file from being written over as another: the audit log
// and the files beside the socket are written, a keyset is the KEK itself.
func (v *validator) distinctFiles(c Config) {
	used := map[string]string{}
	use := func(field, name string) {
		if first, ok := used[name]; ok && name != "" {
			v.add(field, "%s is in use by %s already", name, first)
			return
		}
		used[name] = field
	}
	for _, k := range c.KEKs() {
		if u, err := ParseURI(k.URI); err == nil && u.Scheme == "tink-keyset" && used[u.Path] == "" {
			use(k.Path+".uri", path.Clean(u.Path))
		}
	}
	if c.Socket.Path != "" {
		use("socket.path", c.Socket.Path)
		use("socket.path", c.Socket.Path+".lock")
		use("socket.path", c.Socket.Path+".known")
	}
	use("audit.path", c.Audit.Path)
}

func (v *validator) binding(b map[string]string) {
	v.check(len(b) <= maxBinding, "binding", "has %d pairs; at most %d", len(b), maxBinding)
	for _, name := range slices.Sorted(maps.Keys(b)) {
		at := join("binding", name)
		switch {
		case !word(name, 63, "-_./"):
			v.add(at, "a name is 1 to 63 letters, digits, '-', '_', '.' and '/'")
		case strings.HasPrefix(name, "kube-kek.io/"):
			v.add(at, "names that begin with kube-kek.io/ are our own")
		}
		value := b[name]
		printable := !strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r > '~' })
		v.check(len(value) >= 1 && len(value) <= 256 && printable, at, "must be 1 to 256 printable ASCII characters")
	}
}

func (v *validator) keks(c Config) {
	v.check(c.KEK.Epoch >= 0 && c.KEK.Epoch <= maxEpoch, "kek.epoch", "must be 0 to %d, not %d", maxEpoch, c.KEK.Epoch)
	v.check(len(c.Previous) <= maxPrevious, "previous", "names %d keys; at most %d", len(c.Previous), maxPrevious)
	seen := map[URI]string{}
	for _, k := range c.KEKs() {
		at := k.Path + ".uri"
		if k.Path != "kek" {
			v.check(k.Epoch == 0, k.Path+".epoch", "only kek has an epoch")
		}
		if !v.required(at, k.URI) {
			continue
		}
		u, err := ParseURI(k.URI)
		if err != nil {
			v.add(at, "%s", err)
			continue
		}
		if first, ok := seen[u]; ok {
			v.add(at, "the same key as %s; a key that is named once opens all its records", first)
		} else {
			seen[u] = at
		}
		v.aws(k, u)
	}
}

func (v *validator) aws(k Named, u URI) {
	at, a := k.Path+".aws", k.AWS
	if u.Scheme != "awskms" {
		v.check(a == AWS{}, at, "only goes with an awskms URI, not with %s", u.Scheme)
		return
	}
	v.check(a.Region == "" || word(a.Region, 63, "-"), at+".region", "must be a region such as eu-west-1%s", not(a.Region))
	if a.Endpoint != "" && u.Host != "" {
		v.add(at+".endpoint", "%s.uri names the endpoint %s already; keep one", k.Path, u.Host)
	} else if a.Endpoint != "" {
		v.endpoint(at+".endpoint", a.Endpoint)
	}
	v.check(a.RoleARN == "" || isRoleARN(a.RoleARN), at+".roleARN", "must be arn:aws:iam::ACCOUNT:role/NAME%s", not(a.RoleARN))
	if a.ExternalID != "" {
		v.check(a.RoleARN != "", at+".externalID", "is sent when a role is assumed; it needs %s.roleARN", at)
		v.check(len(a.ExternalID) >= 2 && len(a.ExternalID) <= 1224 && only(a.ExternalID, "_+=,.@:/-"), at+".externalID", "must be 2 to 1224 letters, digits and _+=,.@:/-")
	}
	if a.CABundle != "" {
		v.file(at+".caBundle", a.CABundle)
	}
}

// isRoleARN looks at the form arn:PARTITION:iam::ACCOUNT:role/[PATH/]NAME.
func isRoleARN(s string) bool {
	f := strings.SplitN(s, ":", 6)
	return len(f) == 6 && f[0] == "arn" && strings.HasPrefix(f[1], "aws") && f[2] == "iam" && f[3] == "" &&
		len(f[4]) == 12 && strings.HasPrefix(f[5], "role/") && len(s) <= 2048 && only(s, ":-_+=,.@/")
}

func (v *validator) endpoint(at, s string) {
	u, err := url.Parse(s)
	switch {
	case err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "":
		v.add(at, "must be a URL such as https://kms.eu-west-1.amazonaws.com")
	case u.Scheme == "http" && loopback(u.Hostname()):
	case u.Scheme != "https":
		v.add(at, "must be https; only a loopback address may be http")
	}
}

func (v *validator) times(c Config) {
	lease, renew := time.Duration(c.Lease), time.Duration(c.Renew)
	v.check(lease >= 0 && lease <= maxLease, "lease", "must be 0 (strict) to %s, not %s", Duration(maxLease), c.Lease)
	v.check(renew >= minRenew && renew <= maxRenew, "renew", "must be %s to %s, not %s", Duration(minRenew), Duration(maxRenew), c.Renew)
	v.check(lease <= 0 || renew <= lease/2, "renew", "%s must be at most half of the lease of %s", c.Renew, c.Lease)

	attempt, call := time.Duration(c.Timeouts.Attempt), time.Duration(c.Timeouts.Call)
	v.check(attempt >= minAttempt, "timeouts.attempt", "must be at least %s, not %s", Duration(minAttempt), c.Timeouts.Attempt)
	v.check(call < apiserver, "timeouts.call", "must be below %s, when kube-apiserver gives up, not %s", Duration(apiserver), c.Timeouts.Call)
	v.check(attempt <= call, "timeouts.attempt", "%s is longer than timeouts.call, %s", c.Timeouts.Attempt, c.Timeouts.Call)
}

func (v *validator) socket(s Socket) {
	if v.required("socket.path", s.Path) {
		v.file("socket.path", s.Path)
		v.check(len(s.Path) <= maxPath, "socket.path", "is %d bytes long; a unix socket's path has at most %d", len(s.Path), maxPath)
	}
	v.check(s.Mode == 0o600 || s.Mode == 0o660, "socket.mode", "must be 0600 or 0660, not %s", s.Mode)
	v.check(s.UID >= -1, "socket.uid", "must be a user's number, or -1 to leave it")
	v.check(s.GID >= -1, "socket.gid", "must be a group's number, or -1 to leave it")
	v.check(len(s.AllowedUIDs) > 0, "socket.allowedUIDs", "must name a user; nobody could connect")
	v.check(len(s.AllowedUIDs) <= maxUIDs, "socket.allowedUIDs", "names %d users; at most %d", len(s.AllowedUIDs), maxUIDs)
}

func (v *validator) health(h Health) {
	if h.Address == "" {
		v.check(!h.AllowRemote, "health.allowRemote", "needs health.address")
		return
	}
	host, port, err := net.SplitHostPort(h.Address)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	switch {
	case err != nil:
		v.add("health.address", "must be HOST:PORT%s", not(h.Address))
	case !h.AllowRemote && !loopback(host):
		v.add("health.address", "must be a loopback address such as 127.0.0.1:8080%s; health.allowRemote permits others", not(h.Address))
	}
}

func loopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// not is the end of a message that quotes what stands there.
func not(s string) string {
	if s == "" {
		return ""
	}
	if len(s) > 80 {
		s = s[:80]
		return fmt.Sprintf(", not %q…", s)
	}
	return fmt.Sprintf(", not %q", s)
}

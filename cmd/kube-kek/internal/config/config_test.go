package config

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

const minimal = `apiVersion: kube-kek.io/v1
cluster: prod-eu-1
kek: {uri: "tink-keyset:///etc/kube-kek/keyset.json"}
socket: {path: /run/kube-kek/kube-kek.sock}
`

func mistakesOf(t *testing.T, text string) []string {
	t.Helper()
	d := Parse("test.yaml", []byte(text))
	d.Validate()
	var e *Error
	if err := d.Err(); errors.As(err, &e) {
		return e.Mistakes
	}
	return nil
}

func TestTheReferenceExampleLoads(t *testing.T) {
	d, err := ReadFile("../../testdata/full.yaml")
	if err != nil {
		t.Fatal(err)
	}
	d.Validate()
	if err := d.Err(); err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.Cluster = "prod-eu-1"
	want.Binding = map[string]string{"team": "platform"}
	want.KEK = KEK{
		URI:   "awskms:///arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab",
		Epoch: 2,
		AWS: AWS{
			Region:     "eu-west-1",
			Endpoint:   "https://vpce-0123456789abcdef0-abcdefgh.kms.eu-west-1.vpce.amazonaws.com",
			RoleARN:    "arn:aws:iam::111122223333:role/kube-kek",
			ExternalID: "prod-eu-1",
			CABundle:   "/etc/kube-kek/vpc-endpoint-ca.pem",
		},
	}
	want.Previous = []KEK{{URI: "tink-keyset:///etc/kube-kek/keyset.json"}}
	want.Socket.Path = "/run/kube-kek/kube-kek.sock"
	want.Audit = Audit{Path: "/var/log/kube-kek/audit.log", Required: true}
	if diff := cmp.Diff(want, d.Config); diff != "" {
		t.Errorf("the example says other than its comments claim (-want +got):\n%s", diff)
	}
}

func TestTheReferenceExampleNamesEveryField(t *testing.T) {
	d, err := ReadFile("../../testdata/full.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{
		"apiVersion", "cluster", "binding", "kek.uri", "kek.epoch", "kek.aws.region", "kek.aws.endpoint", "kek.aws.roleARN",
		"kek.aws.externalID", "kek.aws.caBundle", "previous", "lease", "renew", "maxUses", "cacheSize", "timeouts.attempt",
		"timeouts.call", "socket.path", "socket.mode", "socket.uid", "socket.gid", "socket.allowedUIDs", "health.address",
		"health.allowRemote", "audit.path", "audit.required", "log.format", "log.level",
	} {
		if d.lines[path] == 0 {
			t.Errorf("the example lacks %s", path)
		}
	}
}

func TestAMinimalFileHasTheDefaults(t *testing.T) {
	d := Parse("test.yaml", []byte(minimal))
	d.Validate()
	if err := d.Err(); err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.Cluster, want.KEK.URI, want.Socket.Path = "prod-eu-1", "tink-keyset:///etc/kube-kek/keyset.json", "/run/kube-kek/kube-kek.sock"
	if diff := cmp.Diff(want, d.Config, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestMistakes(t *testing.T) {
	base := map[string]string{
		"apiVersion": "kube-kek.io/v1",
		"cluster":    "c",
		"kek":        `{uri: "awskms:///alias/k"}`,
		"socket":     "{path: /run/k.sock}",
	}
	for name, c := range map[string]struct {
		field, value string
		want         string
	}{
		"another version":                      {"apiVersion", "v2", `apiVersion: must be kube-kek.io/v1, not "v2"`},
		"a cluster with a space":               {"cluster", "a b", `cluster: must be 1 to 63 letters`},
		"a cluster of 64 letters":              {"cluster", strings.Repeat("a", 64), `cluster: must be 1 to 63 letters`},
		"no cluster":                           {"cluster", "", "cluster: required"},
		"a binding that takes our name":        {"binding", "{kube-kek.io/cluster: x}", "binding.kube-kek.io/cluster: names that begin with kube-kek.io/"},
		"a binding that is a list":             {"binding", "[a]", "binding: must be a mapping of names to values"},
		"a binding with an odd name":           {"binding", `{"a\nb": x}`, `binding."a\nb": a name is`},
		"a kek without a URI":                  {"kek", "{epoch: 1}", "kek.uri: required"},
		"a URI without a scheme":               {"kek", "{uri: alias/k}", "kek.uri: has no scheme"},
		"a URI without slashes":                {"kek", "{uri: 'awskms:alias/k'}", "kek.uri: lacks its slashes"},
		"a URI that names no key":              {"kek", "{uri: 'awskms:///'}", "kek.uri: names no key"},
		"a URI with a query":                   {"kek", "{uri: 'awskms:///alias/k?region=x'}", "kek.uri: holds"},
		"an epoch over the bound":              {"kek", `{uri: "awskms:///alias/k", epoch: 1000}`, "kek.epoch: must be 0 to 999"},
		"an epoch that is no number":           {"kek", `{uri: "awskms:///alias/k", epoch: two}`, `kek.epoch: "two" is not a whole number`},
		"an epoch on a previous key":           {"previous", `[{uri: "awskms:///alias/j", epoch: 1}]`, "previous[0].epoch: only kek has an epoch"},
		"an audit log where the socket is":     {"audit", "{path: /run/k.sock.known}", "audit.path: /run/k.sock.known is in use by socket.path already"},
		"a keyset where the socket is":         {"kek", `{uri: "tink-keyset:///run/k.sock.known"}`, "socket.path: /run/k.sock.known is in use by kek.uri already"},
		"the same key twice":                   {"previous", `[{uri: "awskms:///alias/j"}, {uri: "awskms:///alias/k"}]`, "previous[1].uri: the same key as kek.uri"},
		"an aws section on a keyset":           {"previous", `[{uri: "tink-keyset:///k", aws: {region: eu-west-1}}]`, "previous[0].aws: only goes with an awskms URI"},
		"an endpoint in two places":            {"kek", `{uri: "awskms://kms.example/alias/k", aws: {endpoint: "https://kms.example"}}`, "kek.aws.endpoint: kek.uri names the endpoint kms.example already; keep one"},
		"an endpoint in the clear":             {"kek", `{uri: "awskms:///alias/k", aws: {endpoint: "http://kms.example"}}`, "kek.aws.endpoint: must be https"},
		"an external ID without a role":        {"kek", `{uri: "awskms:///alias/k", aws: {externalID: abc}}`, "kek.aws.externalID: is sent when a role is assumed"},
		"a relative CA bundle":                 {"kek", `{uri: "awskms:///alias/k", aws: {caBundle: ca.pem}}`, `kek.aws.caBundle: must be an absolute path, not "ca.pem"`},
		"an unknown field close to a known":    {"kek", `{uri: "awskms:///alias/k", epch: 1}`, `kek.epch: unknown field; did you mean "epoch"?`},
		"an unknown field":                     {"kms", "x", "kms: unknown field; known here are apiVersion, cluster"},
		"a lease of words":                     {"lease", "12 hours", `lease: "12 hours" is not a duration`},
		"a lease without a unit":               {"lease", "12", `lease: "12" is not a duration`},
		"a negative lease":                     {"lease", "-1h", "lease: must be 0 (strict) to 168h"},
		"a lease of eight days":                {"lease", "192h", "lease: must be 0 (strict) to 168h, not 192h"},
		"a renewal that outlasts the lease":    {"renew", "12h", "renew: 12h must be at most half of the lease of 12h"},
		"a renewal at every turn":              {"renew", "1ms", "renew: must be 1s to 24h"},
		"no uses":                              {"maxUses", "0", "maxUses: must be 1 to 4294967296, not 0"},
		"negative uses":                        {"maxUses", "-1", `maxUses: "-1" is not a whole number`},
		"too large a cache":                    {"cacheSize", "65537", "cacheSize: must be 1 to 65536"},
		"an attempt that outlasts the call":    {"timeouts", "{attempt: 2s, call: 1s}", "timeouts.attempt: 2s is longer than timeouts.call, 1s"},
		"a call that outlasts kube-apiserver":  {"timeouts", "{call: 3s}", "timeouts.call: must be below 3s"},
		"a relative socket":                    {"socket", "{path: run/k.sock}", `socket.path: must be an absolute path, not "run/k.sock"`},
		"an abstract socket":                   {"socket", "{path: '@k'}", "socket.path: must be an absolute path"},
		"a socket path with dots":              {"socket", "{path: /run/../k.sock}", "socket.path: must be a plain path"},
		"a socket path over 107 bytes":         {"socket", "{path: /" + strings.Repeat("a", 107) + "}", "socket.path: is 108 bytes long"},
		"a socket for all":                     {"socket", "{path: /run/k.sock, mode: 0666}", "socket.mode: must be 0600 or 0660, not 0666"},
		"a mode that is not octal":             {"socket", "{path: /run/k.sock, mode: rw}", `socket.mode: "rw" is not a file mode`},
		"nobody allowed":                       {"socket", "{path: /run/k.sock, allowedUIDs: []}", "socket.allowedUIDs: must name a user"},
		"a negative UID":                       {"socket", "{path: /run/k.sock, allowedUIDs: [-1]}", `socket.allowedUIDs[0]: "-1" is not a whole number from 0 to 4294967295`},
		"one UID, not a list":                  {"socket", "{path: /run/k.sock, allowedUIDs: 0}", "socket.allowedUIDs: must be a list"},
		"health for the world":                 {"health", "{address: 0.0.0.0:8080}", "health.address: must be a loopback address"},
		"health without a port":                {"health", "{address: 127.0.0.1}", "health.address: must be HOST:PORT"},
		"allowRemote that is no truth value":   {"health", "{allowRemote: yes}", `health.allowRemote: "yes" is neither true nor false`},
		"an audit log required but not placed": {"audit", "{required: true}", "audit.required: needs audit.path"},
		"an unknown log format":                {"log", "{format: xml}", `log.format: must be json, text, not "xml"`},
		"an unknown log level":                 {"log", "{level: trace}", `log.level: must be debug, info, warn, error, not "trace"`},
		"an alias":                             {"log", "*a", "unknown anchor"},
		"an anchor":                            {"log", "&a {level: info}", "log: anchors and aliases are not read"},
		"a tag":                                {"cluster", "!!str x", "cluster: tags such as"},
		"a merge key":                          {"log", "{<<: {level: info}}", "log.<<: unknown field"},
		"a key that is a list":                 {"log", "{[a]: b}", "is not a plain word"},
	} {
		t.Run(name, func(t *testing.T) {
			var text strings.Builder
			for f, v := range base {
				if f != c.field {
					text.WriteString(f + ": " + v + "\n")
				}
			}
			text.WriteString(c.field + ": " + c.value + "\n")
			got := mistakesOf(t, text.String())
			if len(got) != 1 || !strings.Contains(got[0], c.want) {
				t.Errorf("got %q, want one mistake with %q", got, c.want)
			}
		})
	}
}

func TestAllMistakesComeAtOnceInTheFilesOrder(t *testing.T) {
	got := mistakesOf(t, `apiVersion: kube-kek.io/v1
clutser: prod
kek:
  uri: awskms:///alias/k
  uri: awskms:///alias/j
previous:
- uri: awskms:///alias/k
- aws: {}
lease: soon
socket: {path: run/k.sock, mode: 0644}
lease: 1h
`)
	want := []string{
		`cluster: required`,
		`line 2: clutser: unknown field; did you mean "cluster"?`,
		`line 4: kek.uri: said twice, on lines 4 and 5`,
		`line 7: previous[0].uri: the same key as kek.uri; a key that is named once opens all its records`,
		`previous[1].uri: required`,
		`line 9: lease: "soon" is not a duration such as 500ms, 5m or 12h`,
		`line 10: socket.path: must be an absolute path, not "run/k.sock"`,
		`line 10: socket.mode: must be 0600 or 0660, not 0644`,
	}
	if diff := cmp.Diff(want, got, cmpopts.SortSlices(strings.Compare)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestFlagsAndFile(t *testing.T) {
	t.Run("a flag fills what the file leaves out", func(t *testing.T) {
		d := Parse("test.yaml", []byte(strings.Replace(minimal, "cluster: prod-eu-1\n", "", 1)))
		d.Say("cluster", "--cluster")
		d.Cluster = "lab"
		d.Validate()
		if err := d.Err(); err != nil {
			t.Error(err)
		}
	})
	t.Run("a flag that repeats the file is a mistake that names both", func(t *testing.T) {
		d := Parse("test.yaml", []byte(minimal))
		d.Say("cluster", "--cluster")
		d.Validate()
		want := "configuration test.yaml: line 2: cluster: said twice, by --cluster and on line 2 of test.yaml; keep one"
		if err := d.Err(); err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	})
	t.Run("without a file, mistakes name the flags", func(t *testing.T) {
		d := New()
		d.Say("cluster", "--cluster")
		d.Say("kek.uri", "--kek")
		d.Say("socket.path", "--socket")
		d.Cluster = "a b"
		d.Validate()
		want := []string{
			"--cluster: must be 1 to 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends, not \"a b\"",
			"--kek: required",
			"--socket: required",
		}
		var e *Error
		if !errors.As(d.Err(), &e) {
			t.Fatal("accepted")
		}
		if diff := cmp.Diff(want, e.Mistakes); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
	})
}

func TestFilesThatAreNoConfiguration(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"an empty file":      {"", "is empty"},
		"only a comment":     {"# nothing\n", "is empty"},
		"a word":             {"hello", "must be a mapping of fields"},
		"a list":             {"- a", "must be a mapping of fields"},
		"two documents":      {minimal + "---\n" + minimal, "more than one YAML document"},
		"text after the end": {minimal + "...\nx", "more than one YAML document"},
		"broken YAML":        {"kek: {", "line 1: "},
		"too large a file":   {strings.Repeat("#", MaxSize+1), "larger than 65536 bytes"},
		"binary":             {"\x00\x01", "control characters"},
	} {
		t.Run(name, func(t *testing.T) {
			got := mistakesOf(t, c.text)
			if len(got) != 1 || !strings.Contains(got[0], c.want) {
				t.Errorf("got %q, want one mistake with %q", got, c.want)
			}
		})
	}
}

func TestCredentialsInAURIAreNotRepeated(t *testing.T) {
	for _, uri := range []string{"awskms://user:hunter2@host/alias/k", "awskms://user:hunter2@ho st/alias/k", "awskms://user:hunter2@[/k"} {
		d := New()
		d.KEK.URI = uri
		d.Validate()
		if err := d.Err(); strings.Contains(err.Error(), "hunter2") || !strings.Contains(err.Error(), "kek.uri: ") {
			t.Errorf("%s", err)
		}
	}
}

func TestDurationsPrintAsTheyAreWritten(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", 12 * time.Hour: "12h", 5 * time.Minute: "5m", 90 * time.Second: "1m30s", 2500 * time.Millisecond: "2.5s", 168 * time.Hour: "168h",
	} {
		if got := Duration(d).String(); got != want {
			t.Errorf("%d: got %s, want %s", d, got, want)
		}
	}
}

// FuzzParse looks for a panic, and for a file that is accepted once but not
// when its values are checked again.
func FuzzParse(f *testing.F) {
	full, err := os.ReadFile("../../testdata/full.yaml")
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range []string{string(full), minimal, "a: &a [*a]", "? [a]\n: b", "kek: {<<: *x}", "--- !!map {}", "%YAML 1.1\n---\n", "binding: {a: ~, ~: b}"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		d := Parse("fuzz.yaml", data)
		d.Validate()
		if err := d.Err(); err != nil {
			if err.Error() == "" {
				t.Error("an error without a text")
			}
			return
		}
		if again := d.Config.Validate(); len(again) != 0 {
			t.Errorf("accepted, then %v", again)
		}
		if d.Cluster == "" || d.KEK.URI == "" || d.Socket.Path == "" || len(d.Socket.AllowedUIDs) == 0 {
			t.Errorf("accepted without what is required: %+v", d.Config)
		}
	})
}

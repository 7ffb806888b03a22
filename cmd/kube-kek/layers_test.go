package main

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/kube-kek/kube-kek"

// goList returns the words that go list prints.
func goList(t *testing.T, args ...string) []string {
	t.Helper()
	out, err := exec.Command("go", append([]string{"list"}, args...)...).Output()
	if err != nil {
		t.Fatalf("go list %v: %v", args, err)
	}
	return strings.Fields(string(out))
}

// direct returns the packages of the module with what each imports itself,
// tests aside.
func direct(t *testing.T) map[string][]string {
	t.Helper()
	out := map[string][]string{}
	for _, p := range goList(t, module+"/...") {
		out[p] = goList(t, "-f", `{{join .Imports "\n"}}`, p)
	}
	return out
}

func TestTheDaemonLinksNoKubernetesAndNoEtcdClient(t *testing.T) {
	for _, p := range goList(t, "-deps", ".") {
		for _, banned := range []string{"k8s.io/client-go", "k8s.io/api", "k8s.io/apimachinery", "k8s.io/apiserver", "go.etcd.io", module + "/atrest"} {
			if under(p, banned) {
				t.Errorf("the daemon links %s", p)
			}
		}
		if strings.HasPrefix(p, "k8s.io/") && !under(p, "k8s.io/kms") {
			t.Errorf("the daemon links %s", p)
		}
	}
}

func TestLibrariesStayInTheirRooms(t *testing.T) {
	rooms := map[string][]string{ // import → where alone it may be
		"github.com/aws":                           {"kek/awskms"},
		"cloud.google.com":                         {"kek/gcpkms"},
		"github.com/Azure":                         {"kek/azurekv"},
		"github.com/AzureAD":                       {"kek/azurekv"},
		"github.com/openbao":                       {"kek/transit"},
		"github.com/tink-crypto":                   {"kek/tinkkeyset", "kek/localkek"},
		"github.com/tink-crypto/tink-go/v2/keyset": {"kek/tinkkeyset"},
		"github.com/tink-crypto/tink-go/v2/insecurecleartextkeyset": {"kek/tinkkeyset"},
		"google.golang.org/grpc":                                    {"plugin", "cmd", "kek/gcpkms"},
		"k8s.io/kms":                                                {"plugin", "cmd"},
		"github.com/spf13":                                          {"cmd"},
		"go.yaml.in":                                                {"cmd"},
	}
	for p, imports := range direct(t) {
		for library, allowed := range rooms {
			for _, i := range imports {
				if under(i, library) && !slices.ContainsFunc(allowed, func(room string) bool { return under(p, module+"/"+room) }) {
					t.Errorf("%s imports %s, which belongs in %v", p, i, allowed)
				}
			}
		}
	}
}

// TestLayersPointDown holds cmd → plugin, atrest → kek/localkek → kek ← kek/HOME.
// Packages of one room may import each other as far as one is inside the other.
func TestLayersPointDown(t *testing.T) {
	for p, imports := range direct(t) {
		for _, i := range imports {
			if under(i, module) && layer(i) >= layer(p) && !under(i, p) && !under(p, i) {
				t.Errorf("%s imports %s, which is not below it", p, i)
			}
		}
	}
}

// layer is the height of a package in the house. What helps tests stands beside
// what it tests.
func layer(p string) int {
	room := strings.TrimPrefix(strings.TrimPrefix(p, module), "/")
	switch {
	case room == "kek":
		return 0
	case under(room, "kek/localkek"):
		return 2
	case under(room, "kek"):
		return 1
	case under(room, "plugin"), under(room, "atrest"):
		return 3
	default:
		return 4
	}
}

// under reports whether p is the package or folder of that name, or below it.
func under(p, name string) bool { return p == name || strings.HasPrefix(p, name+"/") }

package kek_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kube-kek/kube-kek/kek"
)

func TestNewBinding(t *testing.T) {
	more := map[string]string{"team": "platform", kek.ClusterKey: "not this"}
	got := kek.NewBinding("prod-eu-1", more)
	want := kek.Binding{"team": "platform", "kube-kek.io/cluster": "prod-eu-1"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the binding (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[string]string{"team": "platform", kek.ClusterKey: "not this"}, more); diff != "" {
		t.Errorf("the caller's pairs were changed (-want +got):\n%s", diff)
	}
}

// Records that are stored for years are bound to these bytes.
func TestTheBytesOfABindingDoNotChange(t *testing.T) {
	for name, test := range map[string]struct {
		binding kek.Binding
		want    string
	}{
		"nil":               {nil, ""},
		"empty":             {kek.Binding{}, ""},
		"a cluster":         {kek.NewBinding("a", nil), "\x00\x13kube-kek.io/cluster\x00\x01a"},
		"sorted by name":    {kek.Binding{"b": "1", "a": "2", "aa": "3"}, "\x00\x01a\x00\x012\x00\x02aa\x00\x013\x00\x01b\x00\x011"},
		"an empty value":    {kek.Binding{"a": ""}, "\x00\x01a\x00\x00"},
		"over 255 bytes":    {kek.Binding{"a": strings.Repeat("x", 258)}, "\x00\x01a\x01\x02" + strings.Repeat("x", 258)},
		"bytes of any sort": {kek.Binding{"ä": "\x00"}, "\x00\x02\xc3\xa4\x00\x01\x00"},
	} {
		for range 10 { // maps have no order
			if got := string(test.binding.Bytes()); got != test.want {
				t.Errorf("%s: %q, want %q", name, got, test.want)
			}
		}
	}
}

func TestBindingsThatDifferHaveBytesThatDiffer(t *testing.T) {
	bindings := []kek.Binding{
		{}, {"a": "bc"}, {"ab": "c"}, {"abc": ""}, {"": "abc"}, {"a": "b", "c": ""}, {"a": "", "b": "c"},
		{"a": "\x00\x01b\x00\x01c"}, {"a": "", "b": "", "c": ""}, {"a": "b\x00\x01c"},
	}
	for i, a := range bindings {
		for _, b := range bindings[i+1:] {
			if bytes.Equal(a.Bytes(), b.Bytes()) {
				t.Errorf("%v and %v have the same bytes", a, b)
			}
		}
	}
}

package config

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// URI is a KEK's URI taken apart: SCHEME://[HOST]/PATH.
type URI struct {
	Scheme string
	Host   string // with its port; empty in SCHEME:///PATH
	Path   string // unescaped, with its leading slash
}

// ParseURI reads the spelling that cosign, Tink and go-cloud use.
func ParseURI(s string) (URI, error) {
	u, err := url.Parse(s)
	if err != nil {
		// The URL is left out of the text: it might hold a password.
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err
		}
		return URI{}, err
	}
	switch {
	case u.Scheme == "":
		return URI{}, fmt.Errorf("has no scheme; a KEK is SCHEME://…, e.g. awskms:///alias/NAME")
	case u.User != nil:
		return URI{}, fmt.Errorf("holds credentials; they come from the environment, never from the URI")
	case u.RawQuery != "" || u.ForceQuery || strings.Contains(s, "#"):
		return URI{}, fmt.Errorf("holds %q or %q, which no KEK's URI has", "?", "#")
	case u.Opaque != "":
		return URI{}, fmt.Errorf("lacks its slashes: %s:///%s", u.Scheme, u.Opaque)
	case len(u.Path) < 2:
		return URI{}, fmt.Errorf("names no key behind %s://%s/", u.Scheme, u.Host)
	}
	return URI{u.Scheme, u.Host, u.Path}, nil
}

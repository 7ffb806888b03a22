package main

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"time"

	"github.com/kube-kek/kube-kek/cmd/kube-kek/internal/config"
	"github.com/kube-kek/kube-kek/kek"
	"github.com/kube-kek/kube-kek/kek/awskms"
	"github.com/kube-kek/kube-kek/kek/localkek"
	"github.com/kube-kek/kube-kek/kek/tinkkeyset"
)

// home is a kind of place where KEKs live.
type home struct {
	scheme string
	form   string // of its URIs

	// open makes the provider of a KEK without asking anyone. id is the key as
	// the URI already tells it, "" where only the home can.
	open func(ctx context.Context, u config.URI, k config.KEK, b kek.Binding) (p kek.Provider, id string, err error)
}

// homes is the one table of them.
func homes() []home {
	return []home{
		{awskms.Scheme, "awskms:///ARN", openAWS},
		{tinkkeyset.Scheme, "tink-keyset:///PATH", openTinkKeyset},
	}
}

func openAWS(ctx context.Context, u config.URI, k config.KEK, b kek.Binding) (kek.Provider, string, error) {
	c := awskms.Config{
		Key: strings.TrimPrefix(u.Path, "/"), Binding: b,
		Region: k.AWS.Region, Endpoint: k.AWS.Endpoint, RoleARN: k.AWS.RoleARN, ExternalID: k.AWS.ExternalID, CABundle: k.AWS.CABundle,
	}
	if u.Host != "" {
		c.Endpoint = "https://" + u.Host
	}
	p, err := awskms.New(ctx, c)
	if err != nil {
		return nil, "", err
	}
	if strings.HasPrefix(c.Key, "arn:") && strings.Contains(c.Key, ":key/") {
		return p, c.Key, nil
	}
	return p, "", nil
}

func openTinkKeyset(_ context.Context, u config.URI, _ config.KEK, b kek.Binding) (kek.Provider, string, error) {
	if u.Host != "" {
		return nil, "", errors.New("has two slashes where three are needed: tink-keyset:///ABSOLUTE/PATH")
	}
	p, err := tinkkeyset.New(tinkkeyset.Config{Path: u.Path, Binding: b})
	if err != nil {
		return nil, "", err
	}
	return p, filepath.Clean(u.Path), nil
}

func uriForms() string {
	var forms []string
	for _, h := range homes() {
		forms = append(forms, h.form)
	}
	return strings.Join(forms, ", ")
}

// openHomes makes the providers of kek and previous, in this order, without
// asking anyone. What is wrong with one is noted in d.
func openHomes(ctx context.Context, d *config.Document, calls *kek.CallMetrics) []localkek.Home {
	binding := kek.NewBinding(d.Cluster, d.Binding)
	var out []localkek.Home
	for _, k := range d.KEKs() {
		u, err := config.ParseURI(k.URI)
		if err != nil {
			continue // noted by Validate
		}
		h, ok := homeOf(u.Scheme)
		if !ok {
			d.Add(k.Path+".uri", "%q is no home of a KEK; known are %s", u.Scheme, uriForms())
			continue
		}
		p, id, err := h.open(ctx, u, k.KEK, binding)
		if err != nil {
			d.Add(k.Path+".uri", "%s", err)
			continue
		}
		if err := nameable(h.scheme, id, k.Epoch); err != nil {
			d.Add(k.Path+".uri", "%s", err)
		}
		out = append(out, localkek.Home{
			Scheme: h.scheme, ID: id, Epoch: k.Epoch,
			Provider: decorate(p, h.scheme, time.Duration(d.Timeouts.Attempt), calls),
		})
	}
	return out
}

func homeOf(scheme string) (home, bool) {
	for _, h := range homes() {
		if h.scheme == scheme {
			return h, true
		}
	}
	return home{}, false
}

// decorate gives every attempt its timeout, counts every attempt, and tries
// again what may succeed then.
func decorate(p kek.Provider, scheme string, attempt time.Duration, calls *kek.CallMetrics) kek.Provider {
	return kek.Retry(kek.Metrics(kek.Timeout(p, attempt), scheme, calls))
}

// nameable tells whether key IDs of a key can be made and read, with the longest
// version that there may be.
func nameable(scheme, id string, epoch int) error {
	if id == "" {
		return nil
	}
	longest := localkek.KeyID{Scheme: scheme, ID: id, Version: strings.Repeat("0", 32), Epoch: epoch}.String()
	_, err := localkek.ParseKeyID(longest)
	return err
}

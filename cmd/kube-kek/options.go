package main

import (
	"fmt"
	"math"

	"github.com/spf13/pflag"

	"github.com/kube-kek/kube-kek/cmd/kube-kek/internal/config"
)

// flagOf is the table of fields that a flag can say instead of the file.
func flagOf() map[string]string {
	return map[string]string{
		"kek.uri":            "kek",
		"cluster":            "cluster",
		"socket.path":        "socket",
		"socket.allowedUIDs": "allow-uid",
		"health.address":     "health-address",
		"log.format":         "log-format",
		"log.level":          "log-level",
	}
}

// options are the flags of serve and check.
type options struct {
	file      string
	values    config.Config // only the fields of flagOf
	allowUIDs []uint
}

func (o *options) register(f *pflag.FlagSet) {
	d := config.Default()
	f.StringVar(&o.file, "config", "", "the configuration `FILE`; a flag may say what it leaves out")
	f.StringVar(&o.values.KEK.URI, "kek", "", "`URI` of the key that writes use: "+uriForms())
	f.StringVar(&o.values.Cluster, "cluster", "", "the cluster's `NAME`, which every record is bound to: choose it once")
	f.StringVar(&o.values.Socket.Path, "socket", "", "absolute `PATH` of the unix socket for kube-apiserver")
	f.UintSliceVar(&o.allowUIDs, "allow-uid", nil, "`UID` that may connect to the socket, repeatable (default 0)")
	f.StringVar(&o.values.Health.Address, "health-address", d.Health.Address, "loopback `HOST:PORT` of /metrics, /livez and /readyz; \"\" for none")
	f.StringVar(&o.values.Log.Format, "log-format", d.Log.Format, "json or text")
	f.StringVar(&o.values.Log.Level, "log-level", d.Log.Level, "debug, info, warn or error")
}

// load reads the file, if there is one, and puts the flags over it. What is
// wrong is noted in the document.
func (o *options) load(f *pflag.FlagSet) (*config.Document, error) {
	d := config.New()
	if o.file != "" {
		var err error
		if d, err = config.ReadFile(o.file); err != nil {
			return nil, fmt.Errorf("reading --config: %w", err)
		}
	}
	for path, flag := range flagOf() {
		if f.Changed(flag) || o.file == "" {
			d.Say(path, "--"+flag)
		}
	}
	v := o.values
	set(f, "kek", &d.KEK.URI, v.KEK.URI)
	set(f, "cluster", &d.Cluster, v.Cluster)
	set(f, "socket", &d.Socket.Path, v.Socket.Path)
	set(f, "health-address", &d.Health.Address, v.Health.Address)
	set(f, "log-format", &d.Log.Format, v.Log.Format)
	set(f, "log-level", &d.Log.Level, v.Log.Level)
	if f.Changed("allow-uid") {
		d.Socket.AllowedUIDs = nil
		for _, uid := range o.allowUIDs {
			if uid > math.MaxUint32 {
				d.Add("socket.allowedUIDs", "%d is not a user's number", uid)
			}
			d.Socket.AllowedUIDs = append(d.Socket.AllowedUIDs, uint32(uid))
		}
	}
	d.Validate()
	return d, nil
}

func set(f *pflag.FlagSet, flag string, field *string, value string) {
	if f.Changed(flag) {
		*field = value
	}
}

// Package plugin is the KMS v2 service that kube-apiserver talks to: the gRPC
// methods over a ring of local KEKs, the unix socket and who may use it, the
// audit log, health, and metrics.
//
// A daemon is put together in this order, each step of which works without the
// KMS:
//
//	metrics := plugin.NewMetrics(registry, build)    // metrics.Calls is for the providers' decorators
//	ring, err := localkek.New(…)
//	metrics.Watch(ring)
//	service := plugin.NewService(plugin.Config{Ring: ring, …})
//	lis, err := plugin.Listen(plugin.SocketConfig{…})
//	err = plugin.Serve(ctx, plugin.NewServer(service, metrics, logger), lis, plugin.DrainTimeout, logger)
package plugin

package conformance

import (
	_ "golang.org/x/net/http2"
	_ "k8s.io/apimachinery/pkg/runtime/schema"
	_ "k8s.io/apimachinery/pkg/util/validation"
	_ "k8s.io/apiserver/pkg/server/options/encryptionconfig"
	_ "k8s.io/apiserver/pkg/storage/value"
)

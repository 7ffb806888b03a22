// Package homes tests homes of the KEK against the real servers that they speak
// to. The first run builds the servers, which takes some minutes (go run
// ./cmd/parts does only that).
package homes

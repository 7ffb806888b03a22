package main

import (
	"bytes"
	"context"
	"net"

	"google.golang.org/grpc"
	v2 "k8s.io/kms/apis/v2"
)

// bare is the baseline: a KMS v2 service that returns constants of the sizes
// that a record under an AWS key has, over the same gRPC library.
type bare struct {
	v2.UnimplementedKeyManagementServiceServer
	encrypted v2.EncryptResponse
	decrypted v2.DecryptResponse
}

func serveBare(socket string) error {
	lis, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	b := &bare{
		encrypted: v2.EncryptResponse{
			Ciphertext:  bytes.Repeat([]byte{1}, 61),
			KeyId:       string(bytes.Repeat([]byte{'k'}, 115)),
			Annotations: map[string][]byte{"local-kek.kube-kek.io": bytes.Repeat([]byte{1}, 190)},
		},
		decrypted: v2.DecryptResponse{Plaintext: bytes.Repeat([]byte{1}, 32)},
	}
	srv := grpc.NewServer()
	v2.RegisterKeyManagementServiceServer(srv, b)
	return srv.Serve(lis)
}

func (b *bare) Status(context.Context, *v2.StatusRequest) (*v2.StatusResponse, error) {
	return &v2.StatusResponse{Version: "v2", Healthz: "ok", KeyId: b.encrypted.KeyId}, nil
}

func (b *bare) Encrypt(context.Context, *v2.EncryptRequest) (*v2.EncryptResponse, error) {
	return &b.encrypted, nil
}

func (b *bare) Decrypt(context.Context, *v2.DecryptRequest) (*v2.DecryptResponse, error) {
	return &b.decrypted, nil
}

package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math"
	"os"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

// connect opens a channel as the environment says: SIDELIGHT_ADDRESS, SIDELIGHT_TLS (1), SIDELIGHT_TLS_CA (a file with
// the authority that vouches for the server) and SIDELIGHT_TOKEN.
func connect() (*grpc.ClientConn, error) {
	address := os.Getenv("SIDELIGHT_ADDRESS")
	if address == "" {
		address = "127.0.0.1:50051"
	}
	options := []grpc.DialOption{
		// gRPC receives at most 4 MiB by default. One step of a large model can be larger.
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(math.MaxInt32)),
	}
	authority := os.Getenv("SIDELIGHT_TLS_CA")
	if authority == "" && os.Getenv("SIDELIGHT_TLS") != "1" {
		options = append(options, grpc.WithInsecure())
	} else {
		config := &tls.Config{}
		if authority != "" {
			pem, err := os.ReadFile(authority)
			if err != nil {
				return nil, err
			}
			config.RootCAs = x509.NewCertPool()
			if !config.RootCAs.AppendCertsFromPEM(pem) {
				return nil, errors.New(authority + " has no certificate")
			}
		}
		options = append(options, grpc.WithTransportCredentials(credentials.NewTLS(config)))
	}
	if value := os.Getenv("SIDELIGHT_TOKEN"); value != "" {
		options = append(options, grpc.WithPerRPCCredentials(token(value)))
	}
	return grpc.Dial(address, options...)
}

// token goes with each call. gRPC refuses to send it without TLS.
type token string

func (t token) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(t)}, nil
}

func (t token) RequireTransportSecurity() bool { return true }

module example.com/sidelight

go 1.19

require (
	github.com/golang/protobuf v1.5.4
	google.golang.org/genproto/googleapis/rpc v0.0.0-20240814211410-ddb44dafa142
	google.golang.org/grpc v1.66.2
	google.golang.org/protobuf v1.34.2
)

#pragma once

#include <grpcpp/grpcpp.h>

#include <string>

#include "google/rpc/status.pb.h"

// The name of a gRPC status code.
std::string CodeName(int code);

// The code of a status, its reason, and the fields that are wrong.
std::string Describe(const google::rpc::Status& status);
std::string Describe(const grpc::Status& status);

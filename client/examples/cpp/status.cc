#include "status.h"

#include <array>

#include "google/rpc/error_details.pb.h"

std::string CodeName(int code) {
  static const std::array<const char*, 17> kNames = {
      "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
      "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
      "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"};
  return kNames.at(code);
}

std::string Describe(const google::rpc::Status& status) {
  std::string words = CodeName(status.code());
  for (const auto& detail : status.details()) {
    google::rpc::ErrorInfo info;
    google::rpc::BadRequest bad_request;
    if (detail.UnpackTo(&info)) {
      words += " " + info.reason();
    } else if (detail.UnpackTo(&bad_request)) {
      for (const auto& violation : bad_request.field_violations()) {
        words += " " + violation.field() + ": " + violation.description();
      }
    }
  }
  return words;
}

std::string Describe(const grpc::Status& status) {
  google::rpc::Status details;
  if (!status.error_details().empty() && details.ParseFromString(status.error_details())) return Describe(details);
  return CodeName(status.error_code()) + " " + status.error_message();  // the error comes from gRPC
}

# frozen_string_literal: true

require "google/protobuf/well_known_types" # Any#is and Any#unpack
require "google/rpc/error_details_pb"
require "google/rpc/status_pb"
require "grpc"

# The name of a gRPC status code.
def code_name(number)
  GRPC::Core::StatusCodes.constants.find { |name| GRPC::Core::StatusCodes.const_get(name) == number }.to_s
end

# The code of an error, its reason, and the fields that are wrong.
def describe(error)
  status = error.to_rpc_status
  status.nil? ? "#{code_name(error.code)} #{error.details}" : describe_status(status) # nil: the error comes from gRPC
end

def describe_status(status)
  words = [code_name(status.code)]
  status.details.each do |detail|
    if detail.is(Google::Rpc::ErrorInfo)
      words << detail.unpack(Google::Rpc::ErrorInfo).reason
    elsif detail.is(Google::Rpc::BadRequest)
      violations = detail.unpack(Google::Rpc::BadRequest).field_violations
      words.concat(violations.map { |violation| "#{violation.field}: #{violation.description}" })
    end
  end
  words.join(" ")
end

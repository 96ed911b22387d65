// Calls a Sidelight server in each of the ways that the contract has, with generated code and gRPC's C++ library.
//
//   sidelight stream TEXT      the target, and where each token looks, as soon as the token exists
//   sidelight deadline TEXT    a call that takes longer than its deadline
//   sidelight cancel TEXT      a call that the client cancels
//   sidelight error TEXT       a wrong request: the status, its reason and the field
//   sidelight many TEXT...     many texts on one stream
//   sidelight align HTML       a translation that keeps the markup, and the links of its words
//   sidelight vectors FOLDER   decodes the golden vectors
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <future>
#include <iostream>
#include <iterator>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "attention.h"
#include "sidelight/v1/attribution_service.grpc.pb.h"
#include "status.h"
#include "vectors.h"

namespace v1 = sidelight::v1;
using Stub = v1::AttributionService::Stub;

std::string Variable(const char* name, const std::string& otherwise = "") {
  const char* value = std::getenv(name);
  return value != nullptr && *value != '\0' ? value : otherwise;
}

// Opens a channel as the environment says: SIDELIGHT_ADDRESS, SIDELIGHT_TLS (1), SIDELIGHT_TLS_CA (a file with the
// authority that vouches for the server), and SIDELIGHT_TOKEN, which gRPC sends over TLS alone.
std::shared_ptr<grpc::Channel> Connect() {
  const std::string authority = Variable("SIDELIGHT_TLS_CA"), token = Variable("SIDELIGHT_TOKEN");
  std::shared_ptr<grpc::ChannelCredentials> credentials = grpc::InsecureChannelCredentials();
  if (!authority.empty() || Variable("SIDELIGHT_TLS") == "1") {
    grpc::SslCredentialsOptions options;
    if (!authority.empty()) {
      std::ifstream file(authority);
      if (!file) throw std::runtime_error("cannot read " + authority);  // gRPC would take the system's authorities
      options.pem_root_certs.assign(std::istreambuf_iterator<char>(file), {});
    }
    credentials = grpc::SslCredentials(options);
    if (!token.empty()) {
      credentials = grpc::CompositeChannelCredentials(credentials, grpc::AccessTokenCredentials(token));
    }
  } else if (!token.empty()) {
    throw std::runtime_error("SIDELIGHT_TOKEN needs TLS");
  }
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);  // 4 MiB by default. One step of a large model can be larger.
  return grpc::CreateCustomChannel(Variable("SIDELIGHT_ADDRESS", "127.0.0.1:50051"), credentials, arguments);
}

void SetDeadline(grpc::ClientContext& context, std::chrono::milliseconds time) {
  context.set_deadline(std::chrono::system_clock::now() + time);
}

void Check(const grpc::Status& status) {
  if (!status.ok()) throw std::runtime_error(Describe(status));
}

// The characters of a token, or the name of a special token, which has no characters.
const std::string& Show(const v1::Token& token) { return token.text().empty() ? token.piece() : token.text(); }

template <typename T>  // AlignResponse or Alignment
void PrintLinks(const T& links) {
  for (const auto& link : links.links()) {
    std::printf("%s <- %s %.2f\n", links.target(link.target()).text().c_str(), links.source(link.source()).text().c_str(),
                link.score());
  }
}

// Prints each token with the source token that it looks at most, and the links of the words at the end.
void Stream(Stub& stub, const std::string& text) {
  v1::AttributeRequest request;
  request.mutable_source()->set_text(text);
  request.mutable_capture()->add_kinds(v1::ATTENTION_KIND_CROSS);
  request.mutable_capture()->mutable_heads()->set_preset("alignment");
  request.mutable_capture()->set_over_heads(v1::REDUCTION_MEAN);
  request.mutable_link_options();
  request.set_offset_unit(v1::OFFSET_UNIT_UTF8);  // a std::string is bytes of UTF-8
  grpc::ClientContext context;
  SetDeadline(context, std::chrono::minutes(1));
  auto reader = stub.Attribute(&context, request);
  std::vector<v1::Token> source;
  for (v1::AttributeResponse response; reader->Read(&response);) {
    if (response.has_started()) source.assign(response.started().source().begin(), response.started().source().end());
    for (const auto& step : response.steps().steps()) {
      const auto row = Decode(step.cross(), 0, source.size()).values;
      const auto greatest = std::max_element(row.begin(), row.end());
      std::printf("%u %s <- %s %.2f\n", step.index(), Show(step.token()).c_str(),
                  Show(source.at(greatest - row.begin())).c_str(), *greatest);
      std::fflush(stdout);
    }
    if (response.has_finished()) {
      std::printf("%s\n", response.finished().text().c_str());
      PrintLinks(response.finished().alignment());
    }
  }
  Check(reader->Finish());
}

// A request that takes a while: the end of the sentence does not end it.
v1::AttributeRequest Long(const std::string& text) {
  v1::AttributeRequest request;
  request.mutable_source()->set_text(text);
  request.mutable_decoding()->set_max_new_tokens(200);
  request.mutable_decoding()->set_ignore_eos(true);
  return request;
}

void Deadline(Stub& stub, const std::string& text) {
  grpc::ClientContext context;
  SetDeadline(context, std::chrono::milliseconds(20));
  auto reader = stub.Attribute(&context, Long(text));
  for (v1::AttributeResponse response; reader->Read(&response);) {
  }
  std::printf("%s\n", CodeName(reader->Finish().error_code()).c_str());
}

// Cancels a request after three steps. The server ends it, and frees its place in the batch.
void Cancel(Stub& stub, const std::string& text) {
  grpc::ClientContext context;
  auto reader = stub.Attribute(&context, Long(text));
  int steps = 0;
  for (v1::AttributeResponse response; reader->Read(&response);) {
    steps += response.steps().steps_size();
    if (steps >= 3) context.TryCancel();
  }
  std::printf("%s\n", CodeName(reader->Finish().error_code()).c_str());
}

// Asks for a layer that no model has.
void WrongRequest(Stub& stub, const std::string& text) {
  v1::AttributeRequest request;
  request.mutable_source()->set_text(text);
  for (const int layer : {0, 1000}) request.mutable_capture()->mutable_heads()->mutable_layers()->add_layers(layer);
  grpc::ClientContext context;
  auto reader = stub.Attribute(&context, request);
  for (v1::AttributeResponse response; reader->Read(&response);) {
  }
  std::printf("%s\n", Describe(reader->Finish()).c_str());
}

// Sends texts over one stream, and prints the results in the order of the texts.
void Many(Stub& stub, const std::vector<std::string>& texts) {
  grpc::ClientContext context;
  SetDeadline(context, std::chrono::minutes(1));
  auto stream = stub.AttributeMany(&context);
  // A stream reads and writes at the same time: the server reads no more texts while it has enough to do.
  // The future waits for the writer in every case, also where reading throws.
  const auto writer = std::async(std::launch::async, [&] {
    for (size_t number = 0; number < texts.size(); ++number) {
      v1::AttributeManyRequest request;
      request.mutable_attribute()->set_request_id(std::to_string(number));
      request.mutable_attribute()->mutable_source()->set_text(texts[number]);
      request.mutable_attribute()->mutable_capture()->set_none(true);
      if (!stream->Write(request)) return;  // Finish has the error
    }
    stream->WritesDone();
  });
  std::map<std::string, std::string> results;
  const auto take = [&](const v1::AttributeManyResponse& response) {
    if (response.response().has_finished()) results[response.request_id()] = response.response().finished().text();
    if (response.has_error()) {
      const auto& error = response.error();
      results[response.request_id()] = CodeName(error.code()) + " " + error.reason() + " " + error.message();
    }
  };
  for (v1::AttributeManyResponse response; stream->Read(&response);) {
    take(response);
    for (const auto& item : response.batch().responses()) take(item);
  }
  writer.wait();
  Check(stream->Finish());
  for (size_t number = 0; number < texts.size(); ++number) {
    std::printf("%zu %s\n", number, results[std::to_string(number)].c_str());
  }
}

// Translates HTML, and prints the translation with its markup and the links of the words.
void Align(Stub& stub, const std::string& html) {
  v1::AlignRequest request;
  request.mutable_source()->set_text(html);
  request.mutable_markup()->set_format(v1::MARKUP_FORMAT_HTML);
  grpc::ClientContext context;
  SetDeadline(context, std::chrono::minutes(1));
  v1::AlignResponse response;
  Check(stub.Align(&context, request, &response));
  std::printf("%s\n", response.marked_target_text().c_str());
  PrintLinks(response);
}

int main(int argc, char** argv) try {
  const std::vector<std::string> words(argv + 1, argv + argc);
  const std::runtime_error usage("usage: sidelight stream|deadline|cancel|error|many|align|vectors ARGUMENT...");
  if (words.size() < 2) throw usage;
  if (words[0] == "vectors") {
    CheckVectors(words[1]);
    return 0;
  }
  const auto stub = v1::AttributionService::NewStub(Connect());
  const std::map<std::string, void (*)(Stub&, const std::string&)> commands = {
      {"stream", Stream}, {"deadline", Deadline}, {"cancel", Cancel}, {"error", WrongRequest}, {"align", Align}};
  if (words[0] == "many") {
    Many(*stub, {words.begin() + 1, words.end()});
  } else if (const auto command = commands.find(words[0]); command != commands.end()) {
    command->second(*stub, words[1]);
  } else {
    throw usage;
  }
  return 0;
} catch (const std::exception& error) {
  std::cerr << error.what() << "\n";
  return 1;
}

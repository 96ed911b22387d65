#include "vectors.h"

#include <google/protobuf/dynamic_message.h>
#include <google/protobuf/util/json_util.h>
#include <google/protobuf/util/message_differencer.h>

#include <cstdio>
#include <fstream>
#include <functional>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <vector>

#include "attention.h"
#include "sidelight/v1/attribution_service.pb.h"
#include "status.h"

namespace pb = google::protobuf;
namespace v1 = sidelight::v1;
using Json = nlohmann::json;
using Messages = std::vector<std::unique_ptr<pb::Message>>;

namespace {

void Expect(bool is_right, const std::string& where) {
  if (!is_right) throw std::runtime_error(where + " differs");
}

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  Expect(file.good(), path);
  return {std::istreambuf_iterator<char>(file), {}};
}

// Reads messages as gRPC sends them: a byte 0, four bytes of length with the greatest first, and the message.
Messages Read(const std::string& path, const pb::Descriptor* type, const Json& expected) {
  const std::string data = ReadFile(path);
  const pb::Message* prototype = pb::MessageFactory::generated_factory()->GetPrototype(type);
  Messages messages;
  for (size_t begin = 0; begin < data.size();) {
    uint32_t length = 0;
    for (size_t i = 1; i < 5; ++i) length = length << 8 | static_cast<unsigned char>(data.at(begin + i));
    const std::string bytes = data.substr(begin + 5, length), where = path + ", message " + std::to_string(messages.size());
    std::unique_ptr<pb::Message> message(prototype->New()), other(prototype->New());
    Expect(message->ParseFromString(bytes), where);
    Expect(message->SerializeAsString() == bytes, where + ", written again,");
    Expect(pb::util::JsonStringToMessage(expected.at(messages.size()).dump(), other.get()).ok(), where + ", as JSON,");
    Expect(pb::util::MessageDifferencer::Equals(*message, *other), where + ", as JSON,");
    messages.push_back(std::move(message));
    begin += 5 + length;
  }
  Expect(messages.size() == expected.size(), path + ": the number of messages");
  return messages;
}

// Visits a message and all messages in it, in the order of the fields.
void Walk(const pb::Message& message, const std::function<void(const pb::Message&)>& visit) {
  visit(message);
  const pb::Reflection* reflection = message.GetReflection();
  std::vector<const pb::FieldDescriptor*> fields;
  reflection->ListFields(message, &fields);
  for (const auto* field : fields) {
    if (field->cpp_type() != pb::FieldDescriptor::CPPTYPE_MESSAGE) continue;
    if (!field->is_repeated()) Walk(reflection->GetMessage(message, field), visit);
    for (int i = 0; field->is_repeated() && i < reflection->FieldSize(message, field); ++i) {
      Walk(reflection->GetRepeatedMessage(message, field, i), visit);
    }
  }
}

// The part of a text between two offsets.
std::string Cut(const std::string& text, uint32_t begin, uint32_t end, v1::OffsetUnit unit) {
  if (unit == v1::OFFSET_UNIT_UTF8) return text.substr(begin, end - begin);
  // The first byte of a character counts: as one, or as two units of UTF-16 where the character has four bytes.
  std::string part;
  uint32_t at = 0, place = 0;
  for (const unsigned char byte : text) {
    if ((byte & 0xc0) != 0x80) {
      place = at;
      at += unit == v1::OFFSET_UNIT_UTF16 && byte >= 0xf0 ? 2 : 1;
    }
    if (place >= begin && place < end) part += static_cast<char>(byte);
  }
  return part;
}

struct Counts {
  size_t messages = 0, arrays = 0, texts = 0;
};

// Compares each Attention message with the next array, and each text of a token or a span with the characters at its
// offsets.
class Comparison {
 public:
  Comparison(const Json& arrays, Counts& counts) : arrays_(arrays), counts_(counts) {}

  void Visit(const pb::Message& message) {
    if (const auto* attention = dynamic_cast<const v1::Attention*>(&message)) {
      Compare(*attention);
    } else if (const auto* started = dynamic_cast<const v1::Started*>(&message)) {
      unit_ = started->offset_unit();
      CompareTexts(started->source_text(), started->source());
      CompareTexts(started->source_text(), started->source_units());
    } else if (const auto* finished = dynamic_cast<const v1::Finished*>(&message)) {
      CompareTexts(finished->text(), finished->alignment().target());
    } else if (const auto* alignment = dynamic_cast<const v1::AlignResponse*>(&message)) {
      unit_ = alignment->offset_unit();
      CompareTexts(alignment->source_text(), alignment->source());
      CompareTexts(alignment->target_text(), alignment->target());
    }
  }

  void CheckEnd() const { Expect(next_ == arrays_.size(), "the number of arrays"); }

 private:
  void Compare(const v1::Attention& message) {
    const Json& expected = arrays_.at(next_++);
    const auto shape = expected["shape"].get<std::vector<uint32_t>>();
    const auto values = expected["values"].get<std::vector<double>>();
    const size_t axis = expected["positionsAxis"];
    const Numbers numbers = Decode(message, axis, shape.at(axis));
    const std::string where = expected["path"];
    Expect(numbers.shape == shape, where + ": the shape");
    Expect(numbers.values == std::vector<float>(values.begin(), values.end()), where);
    ++counts_.arrays;
  }

  template <typename T>  // tokens or spans
  void CompareTexts(const std::string& text, const T& items) {
    for (const auto& item : items) {
      Expect(Cut(text, item.begin(), item.end(), unit_) == item.text(), "the text \"" + item.text() + "\"");
      ++counts_.texts;
    }
  }

  const Json& arrays_;
  Counts& counts_;
  size_t next_ = 0;
  v1::OffsetUnit unit_ = v1::OFFSET_UNIT_CODE_POINT;
};

// What the JSON of a status says, in the words of `Describe`.
std::string Words(const Json& status) {
  std::string words = CodeName(status["code"]);
  for (const Json& detail : status["details"]) {
    if (detail.contains("reason")) words += " " + detail["reason"].get<std::string>();
    for (const Json& wrong : detail.value("fieldViolations", Json::array())) {
      words += " " + wrong["field"].get<std::string>() + ": " + wrong["description"].get<std::string>();
    }
  }
  return words;
}

void CheckVector(const std::string& path, Counts& counts) {
  const Json expected = Json::parse(ReadFile(path + ".json"));
  const auto* service = v1::AttributeRequest::descriptor()->file()->FindServiceByName("AttributionService");
  const auto* method = service->FindMethodByName(expected["method"]);
  const Messages requests = Read(path + ".requests.bin", method->input_type(), expected["requests"]);
  const Messages responses = Read(path + ".responses.bin", method->output_type(), expected["responses"]);
  counts.messages += requests.size() + responses.size();
  if (!expected["status"].is_null()) {
    google::rpc::Status status;
    Expect(status.ParseFromString(ReadFile(path + ".status.bin")), path + ": status");
    Expect(Describe(status) == Words(expected["status"]), path + ": status");
    ++counts.messages;
  }
  Comparison comparison(expected["arrays"], counts);
  for (const auto& response : responses) {
    Walk(*response, [&](const pb::Message& message) { comparison.Visit(message); });
  }
  comparison.CheckEnd();
}

}  // namespace

void CheckVectors(const std::string& folder) {
  Counts counts;
  const Json names = Json::parse(ReadFile(folder + "/index.json"));
  for (const std::string name : names) {
    try {
      CheckVector(folder + "/" + name, counts);
    } catch (const std::exception& error) {
      throw std::runtime_error(name + ": " + error.what());
    }
  }
  std::printf("%zu vectors, %zu messages, %zu arrays, %zu texts at their offsets\n", names.size(), counts.messages,
              counts.arrays, counts.texts);
}

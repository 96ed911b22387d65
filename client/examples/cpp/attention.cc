#include "attention.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>

namespace v1 = sidelight::v1;

namespace {

// Reads little-endian bytes on a machine of any byte order.
uint32_t Unsigned(const std::string& bytes, size_t begin, size_t width) {
  uint32_t value = 0;
  for (size_t i = 0; i < width; ++i) {
    value |= static_cast<uint32_t>(static_cast<unsigned char>(bytes.at(begin + i))) << (8 * i);
  }
  return value;
}

float Float32(const std::string& bytes, size_t index) {
  const uint32_t bits = Unsigned(bytes, 4 * index, 4);
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

float Float16(const std::string& bytes, size_t index) {
  const uint32_t bits = Unsigned(bytes, 2 * index, 2);
  const int exponent = bits >> 10 & 0x1f, fraction = bits & 0x3ff;
  float value = std::ldexp(static_cast<float>(exponent ? 1024 + fraction : fraction), exponent ? exponent - 25 : -24);
  if (exponent == 0x1f) value = fraction ? std::numeric_limits<float>::quiet_NaN() : std::numeric_limits<float>::infinity();
  return bits >> 15 ? -value : value;
}

size_t Width(v1::Encoding encoding) {
  switch (encoding) {
    case v1::ENCODING_FLOAT32: return 4;
    case v1::ENCODING_FLOAT16: return 2;
    case v1::ENCODING_UINT8: return 1;
    default: throw std::invalid_argument("unknown encoding " + std::to_string(encoding));
  }
}

float Read(const v1::Attention& message, size_t index, size_t row) {
  switch (message.encoding()) {
    case v1::ENCODING_FLOAT32: return Float32(message.values(), index);
    case v1::ENCODING_FLOAT16: return Float16(message.values(), index);
    default: return static_cast<float>(Unsigned(message.values(), index, 1)) * Float32(message.scales(), row);
  }
}

}  // namespace

Numbers Decode(const v1::Attention& message, size_t axis, uint32_t positions) {
  Numbers numbers;
  size_t size = 1, inner = 1;
  for (const uint32_t length : message.shape()) {
    if (numbers.shape.size() > axis) inner *= length;
    numbers.shape.push_back(length);
    size *= length;
  }
  const bool is_sparse = !message.positions().empty();
  const uint32_t sent = numbers.shape.at(axis);
  if (message.values().size() != size * Width(message.encoding()) ||
      (is_sparse ? message.positions().size() != 4 * size : sent != positions)) {
    throw std::invalid_argument("the bytes of attention do not fill their shape");
  }
  numbers.shape[axis] = positions;
  numbers.values.resize(size == 0 ? 0 : size / sent * positions);
  // A place has an index before the axis, on the axis and after it: (before * sent + at) * inner + after.
  for (size_t i = 0; i < size; ++i) {
    const size_t before = i / (sent * inner), after = i % inner;
    const size_t at = is_sparse ? Unsigned(message.positions(), 4 * i, 4) : i / inner % sent;
    if (at >= positions) throw std::invalid_argument("position " + std::to_string(at) + " is out of range");
    // In bytes, each row has a scale: each index of the other axes.
    numbers.values[(before * positions + at) * inner + after] = Read(message, i, before * inner + after);
  }
  return numbers;
}

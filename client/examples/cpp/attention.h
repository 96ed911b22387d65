#pragma once

#include <cstdint>
#include <vector>

#include "sidelight/v1/attention.pb.h"

struct Numbers {
  std::vector<uint32_t> shape;
  std::vector<float> values;  // in C order: the last axis varies fastest
};

// Decodes the numbers of an Attention message for every position. A position that was not sent is 0. `axis` is the axis of
// the positions: 0 in a step, 1 in encoder self-attention. Throws std::invalid_argument.
Numbers Decode(const sidelight::v1::Attention& message, size_t axis, uint32_t positions);

#include "rows.h"

#include <cstring>

namespace vokenray {
namespace {

float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// Exponent and fraction move to their places in a float32; the product mends the bias, of subnormals too. Finite only.
float from_float16(uint16_t half) {
  const float size = float_of(static_cast<uint32_t>(half & 0x7fff) << 13) * 0x1p112f;
  uint32_t bits;
  std::memcpy(&bits, &size, 4);
  return float_of(bits | static_cast<uint32_t>(half & 0x8000) << 16);
}

}  // namespace

const float* Rows::read(int64_t row, float* scratch) const {
  if (number == Number::float32) return reinterpret_cast<const float*>(at(row));
  const auto* halves = reinterpret_cast<const uint16_t*>(at(row));
  if (number == Number::float16) {
    for (int64_t i = 0; i < width; ++i) scratch[i] = from_float16(halves[i]);
  } else {
    for (int64_t i = 0; i < width; ++i) scratch[i] = float_of(static_cast<uint32_t>(halves[i]) << 16);
  }
  return scratch;
}

}  // namespace vokenray

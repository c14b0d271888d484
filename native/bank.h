// A bank of keys, rounded and packed once for scanning. It does not hold the float32 keys themselves.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels.h"

namespace vokenray {

enum class Kind { int8, bf16 };

struct Bank {
  Kind kind;
  int64_t count, width, blocks;
  int exponent;               // keys are scaled by 2^-exponent: the largest value is then in [0.5, 1)
  double largest_norm;        // of the keys as they came, rounded up
  double largest_scaled;      // norm of a scaled key, of a centred one, and of the centre: rounded up
  double largest_centred;
  double largest_rounded;     // norm of a rounded key
  double centre_norm;
  std::vector<float> centre;  // subtracted from the scaled keys: all scores of a query move by the same amount
  std::vector<int32_t> rows;  // packed place -> row; -1 where a block is filled up
  std::vector<float> scale, inverse, norm, residual;  // per block
  std::unique_ptr<uint8_t[]> memory;
  uint8_t* tiles;             // inside memory, at a multiple of 64 bytes
  int tiles_per_row, groups;

  KeyBlocks view() const {
    return {tiles, scale.data(), inverse.data(), norm.data(), residual.data(), tiles_per_row, groups};
  }
};

// Packs finite keys (count, width); int8 needs width <= kWidestInt8. Throws std::bad_alloc.
constexpr int64_t kWidestInt8 = 16384;
std::unique_ptr<Bank> pack(const float* keys, int64_t count, int64_t width, Kind kind);

// Shared with the queries: |value| as the next bf16 by rounding half to even, subnormals as zero.
uint16_t to_bf16(double value);
double bf16_value(uint16_t bits);
float round_up(double value);

}  // namespace vokenray

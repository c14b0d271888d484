// A bank of keys, rounded and packed once for scanning. It does not hold the keys as they came.
#pragma once

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.h"
#include "memory.h"
#include "rows.h"

namespace vokenray {

// How vectors are rounded: to 8-bit integers, to bfloat16, or to a high and a low bfloat16. Of such a pair of vectors
// the products high high, low high and high low are summed, as one row of three times the width:
// keys lie as [high, high, low], queries as [high, low, high].
enum class Kind : int32_t { int8, bf16, split };
constexpr Kind kKinds[] = {Kind::int8, Kind::bf16, Kind::split};

inline const char* kind_name(Kind kind) {
  return kind == Kind::int8 ? "int8" : kind == Kind::bf16 ? "bf16" : "split";
}

struct Bank {
  Kind kind;
  int64_t count, width, blocks;
  int exponent;               // keys are scaled by 2^-exponent: the largest value is then in [0.5, 1)
  double largest_norm;        // of the keys as they came, rounded up
  double largest_scaled;      // norm of a scaled key, of a centred one, and of the centre: rounded up
  double largest_centred;
  double largest_rounded;     // norm of a rounded key, both parts together where there are two
  double largest_low;         // norm of a key's low part; 0 where there is none
  double centre_norm;
  std::vector<float> centre;  // subtracted from the scaled keys: all scores of a query move by the same amount
  std::vector<int32_t> rows;  // packed place -> row; -1 where a block is filled up
  std::vector<float> scale, inverse, norm, residual;  // per block
  TileMemory memory;          // empty where someone else keeps the tiles
  const uint8_t* tiles;       // at a multiple of 64 bytes
  int tiles_per_row, groups;

  size_t tile_bytes() const { return static_cast<size_t>(blocks) * 2 * tiles_per_row * kTile; }
  KeyBlocks view() const {
    return {tiles, scale.data(), inverse.data(), norm.data(), residual.data(), tiles_per_row, groups};
  }
};

constexpr int64_t kWidestInt8 = 16384;
constexpr int64_t kWidest = 1 << 22;
constexpr int64_t kMostKeys = INT32_MAX - kBlock;

// Sets blocks, tiles_per_row and groups from kind, count and width.
void set_shape(Bank* bank);

inline int64_t widest(Kind kind) { return kind == Kind::int8 ? kWidestInt8 : kWidest; }
inline int64_t steps_of(Kind kind, int64_t width) { return kind == Kind::split ? 3 * width : width; }

// Packs finite keys of widest(kind) columns at most. Throws std::bad_alloc.
std::unique_ptr<Bank> pack(const Rows& keys, Kind kind);

// All of a bank but its tiles, and back. `tiles` must outlive the restored bank. Throws std::invalid_argument when the
// header is not of this layout or contradicts itself, and when the tiles are of another size or not aligned to 64.
std::string write_header(const Bank& bank);
std::unique_ptr<Bank> restore(const std::string& header, const uint8_t* tiles, size_t tile_bytes);

// Shared with the queries. To the next whole number, half to even, below 2^51.
inline double to_whole(double value) { return (value + 0x1.8p52) - 0x1.8p52; }
// The next bf16, half to even; subnormals as zero.
uint16_t to_bf16(double value);
double bf16_value(uint16_t bits);
float round_up(double value);

}  // namespace vokenray

// What every scan kernel shares: how keys and queries lie in memory, and what a kernel answers.
//
// A row of D values is cut into tiles of 64 bytes: 64 int8 or 32 bf16 values. Keys lie in blocks of 32, two halves of
// 16 rows: [block][half][tile][row 16][64 bytes]. Queries lie in panels of 32: [half][tile][group 16][query 16][4 bytes],
// a group being the 4 bytes that one lane of a dot-product instruction takes. Both are what AMX tiles load directly.
#pragma once

#include <cstddef>
#include <cstdint>

namespace vokenray {

constexpr int kBlock = 32;
constexpr int kHalf = 16;
constexpr int kTileBytes = 64;
constexpr int kTile = kHalf * kTileBytes;
constexpr int kGroups = 16;
constexpr float kNever = 3.0e38f;      // a threshold that no score reaches
constexpr float kLargestInteger = 1e9f;  // above every int8 sum, below 2^31

struct KeyBlocks {
  const uint8_t* tiles;
  const float* scale;     // per block: score = sum * scale
  const float* inverse;   // per block: 1 / scale
  const float* norm;      // per block: largest L2 norm of its keys
  const float* residual;  // per block: largest L2 norm of key - rounded key
  int tiles_per_row;
  int groups;  // groups of 4 bytes in use; the rest of the last tile is zero
};

struct QueryPanel {
  const uint8_t* tiles;
  const int32_t* start;      // per query: where int8 sums start, undoing the 128 added to the keys
  const float* threshold;    // per query: a key counts when score + bound reaches it
  const float* by_norm;      // per query: bound = by_norm * norm + by_residual * residual + constant
  const float* by_residual;
  const float* constant;
};

// Where a scan stopped: scores [key 32][query 32] (int32 or float32) and one bit per query for each key that counts.
// Scores are only there for keys with a bit set.
struct Hits {
  alignas(64) uint8_t scores[kBlock * kBlock * 4];
  alignas(64) uint32_t queries[kBlock];
};

// Scans blocks first..last-1 until one holds a key that counts; returns that block, or last.
using Scan = int64_t (*)(const KeyBlocks&, int64_t first, int64_t last, const QueryPanel&, Hits*);

struct Kernels {
  const char* name;
  Scan int8;                                          // null where this processor lacks it
  Scan bf16;
  double (*dot)(const float*, const float*, int64_t);  // a double-precision sum, any order
  void (*begin)();                                    // called by each thread before its scans
  void (*end)();
};

const Kernels& portable_kernels();
const Kernels* avx512_kernels();  // null where the processor or the compiler lacks it
const Kernels* amx_kernels();

}  // namespace vokenray

// What every scan kernel shares: how keys and queries lie in memory, and what a kernel answers.
//
// A row of D values is cut into tiles of 64 bytes: 64 int8 or 32 bf16 values. Keys lie in blocks of 32, two halves of
// 16 rows: [block][half][tile][row 16][64 bytes]. Queries lie in panels of 32: [half][tile][group 16][query 16][4
// bytes], a group being what one lane of a dot-product instruction takes. Both are what AMX tiles load directly.
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
  const int32_t* start;      // per query: what an int8 sum lacks, since 128 was added to the keys
  const float* threshold;    // per query: a key counts when score + bound reaches it
  const float* by_norm;      // per query: bound = by_norm * norm + by_residual * residual + constant
  const float* by_residual;
  const float* constant;
};

// Pairs of a key and a query that count, as a scan found them.
constexpr int64_t kEnoughHits = 256;  // a scan stops behind the block that brings it here: thresholds can then rise
struct Hits {
  static constexpr int64_t kRoom = kEnoughHits + 2 * kBlock * kBlock + kHalf;  // two blocks, written in whole vectors
  int64_t count = 0;
  alignas(64) int32_t places[kRoom];   // 32 * block + place of the key in it
  alignas(64) int32_t queries[kRoom];  // place in the panel
  alignas(64) int32_t sums[kRoom];     // int32 without its start, or the bits of a float32
};

// Scans blocks first..last-1 and adds what counts to the hits; returns the first block not scanned.
using Scan = int64_t (*)(const KeyBlocks&, int64_t first, int64_t last, const QueryPanel&, Hits*);

// Of every few keys of blocks first..last-1 takes the best lower bound of a score with each query, and keeps the k
// largest: lowers [k][query 32], largest first. The blocks must be full.
using Peaks = void (*)(const KeyBlocks&, int64_t first, int64_t last, const QueryPanel&, int64_t k, float* lowers);

struct Scans {
  Scan scan;  // null where this processor lacks it
  Peaks peaks;
};

struct Kernels {
  const char* name;
  Scans int8, bf16;
  double (*dot)(const float*, const float*, int64_t);  // a double-precision sum, any order
  void (*begin)();                                     // called by each thread before its scans
  void (*end)();
};

const Kernels& portable_kernels();
const Kernels* avx2_kernels();  // null where the processor or the compiler lacks it
const Kernels* avx_vnni_kernels();
const Kernels* avx512_kernels();
const Kernels* amx_kernels();

}  // namespace vokenray

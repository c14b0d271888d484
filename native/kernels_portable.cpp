// Plain C++: any processor, no speed claimed.
#include <cstring>

#include "kernels.h"

namespace vokenray {
namespace {

float from_bf16(const uint8_t* bytes) {
  uint16_t half;
  std::memcpy(&half, bytes, 2);
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

struct Int8 {
  using Sum = int32_t;
  static Sum start(const QueryPanel& panel, int query) { return panel.start[query]; }
  static void add(Sum* sum, const uint8_t* key, const uint8_t* query) {
    for (int i = 0; i < 4; ++i) *sum += static_cast<int32_t>(key[i]) * static_cast<int8_t>(query[i]);
  }
};

struct Bf16 {
  using Sum = float;
  static Sum start(const QueryPanel&, int) { return 0.0f; }
  static void add(Sum* sum, const uint8_t* key, const uint8_t* query) {
    *sum += from_bf16(key) * from_bf16(query);
    *sum += from_bf16(key + 2) * from_bf16(query + 2);
  }
};

template <class Kind>
int64_t scan(const KeyBlocks& keys, int64_t first, int64_t last, const QueryPanel& panel, Hits* hits) {
  const size_t half_bytes = static_cast<size_t>(keys.tiles_per_row) * kTile;
  auto* scores = reinterpret_cast<typename Kind::Sum*>(hits->scores);
  for (int64_t block = first; block < last; ++block) {
    const uint8_t* block_tiles = keys.tiles + static_cast<size_t>(block) * 2 * half_bytes;
    float lowest[kBlock];
    for (int query = 0; query < kBlock; ++query) {
      const float bound = panel.by_norm[query] * keys.norm[block] + panel.by_residual[query] * keys.residual[block] +
                          panel.constant[query];
      lowest[query] = panel.threshold[query] - bound;
    }
    bool any = false;
    for (int key = 0; key < kBlock; ++key) {
      const uint8_t* key_row = block_tiles + (key / kHalf) * half_bytes + (key % kHalf) * kTileBytes;
      uint32_t bits = 0;
      for (int query = 0; query < kBlock; ++query) {
        const uint8_t* column = panel.tiles + (query / kHalf) * half_bytes + (query % kHalf) * 4;
        typename Kind::Sum sum = Kind::start(panel, query);
        for (int group = 0; group < keys.groups; ++group) {
          const int tile = group / kGroups, inside = group % kGroups;
          Kind::add(&sum, key_row + static_cast<size_t>(tile) * kTile + inside * 4,
                    column + static_cast<size_t>(tile) * kTile + inside * kTileBytes);
        }
        scores[key * kBlock + query] = sum;
        if (static_cast<float>(sum) * keys.scale[block] >= lowest[query]) bits |= 1u << query;
      }
      hits->queries[key] = bits;
      any = any || bits != 0;
    }
    if (any) return block;
  }
  return last;
}

double dot(const float* left, const float* right, int64_t width) {
  double sums[4] = {0, 0, 0, 0};
  int64_t i = 0;
  for (; i + 4 <= width; i += 4) {
    for (int j = 0; j < 4; ++j) sums[j] += static_cast<double>(left[i + j]) * right[i + j];
  }
  for (; i < width; ++i) sums[0] += static_cast<double>(left[i]) * right[i];
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

void nothing() {}

}  // namespace

const Kernels& portable_kernels() {
  static const Kernels kernels = {"portable", scan<Int8>, scan<Bf16>, dot, nothing, nothing};
  return kernels;
}

}  // namespace vokenray

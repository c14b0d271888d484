// Plain C++: any processor, no speed claimed.
#include <algorithm>
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
  static float number(Sum sum, const QueryPanel& panel, int query) {
    return static_cast<float>(sum + panel.start[query]);
  }
  static void add(Sum* sum, const uint8_t* key, const uint8_t* query) {
    for (int i = 0; i < 4; ++i) *sum += static_cast<int32_t>(key[i]) * static_cast<int8_t>(query[i]);
  }
};

struct Bf16 {
  using Sum = float;
  static float number(Sum sum, const QueryPanel&, int) { return sum; }
  static void add(Sum* sum, const uint8_t* key, const uint8_t* query) {
    *sum += from_bf16(key) * from_bf16(query);
    *sum += from_bf16(key + 2) * from_bf16(query + 2);
  }
};

void add_hit(Hits* hits, int64_t place, int query, const void* sum) {
  hits->places[hits->count] = static_cast<int32_t>(place);
  hits->queries[hits->count] = query;
  std::memcpy(&hits->sums[hits->count++], sum, 4);
}

template <class Kind>
typename Kind::Sum product(const KeyBlocks& keys, const uint8_t* key, const uint8_t* column) {
  typename Kind::Sum sum = 0;
  for (int group = 0; group < keys.groups; ++group) {
    const size_t tile = static_cast<size_t>(group / kGroups) * kTile;
    const int inside = group % kGroups;
    Kind::add(&sum, key + tile + inside * 4, column + tile + inside * kTileBytes);
  }
  return sum;
}

float bound_of(const KeyBlocks& keys, int64_t block, const QueryPanel& panel, int query) {
  return panel.by_norm[query] * keys.norm[block] + panel.by_residual[query] * keys.residual[block] +
         panel.constant[query];
}

// Visits every pair of a block: the place of the key in it, the query, the sum.
template <class Kind, class Visit>
void visit_block(const KeyBlocks& keys, int64_t block, const QueryPanel& panel, Visit visit) {
  const size_t half_bytes = static_cast<size_t>(keys.tiles_per_row) * kTile;
  const uint8_t* block_tiles = keys.tiles + static_cast<size_t>(block) * 2 * half_bytes;
  for (int query = 0; query < kBlock; ++query) {
    const uint8_t* column = panel.tiles + (query / kHalf) * half_bytes + (query % kHalf) * 4;
    for (int key = 0; key < kBlock; ++key) {
      const uint8_t* row = block_tiles + (key / kHalf) * half_bytes + (key % kHalf) * kTileBytes;
      visit(key, query, product<Kind>(keys, row, column));
    }
  }
}

template <class Kind>
int64_t scan(const KeyBlocks& keys, int64_t first, int64_t last, const QueryPanel& panel, Hits* hits) {
  for (int64_t block = first; block < last; ++block) {
    if (hits->count >= kEnoughHits) return block;
    float lowest[kBlock];
    for (int query = 0; query < kBlock; ++query) {
      lowest[query] = panel.threshold[query] - bound_of(keys, block, panel, query);
    }
    visit_block<Kind>(keys, block, panel, [&](int key, int query, typename Kind::Sum sum) {
      const float score = Kind::number(sum, panel, query) * keys.scale[block];
      if (score >= lowest[query]) add_hit(hits, block * kBlock + key, query, &sum);
    });
  }
  return last;
}

template <class Kind>
void peaks(const KeyBlocks& keys, int64_t first, int64_t last, const QueryPanel& panel, int64_t k, float* lowers) {
  for (int64_t block = first; block < last; ++block) {
    float best[kBlock];
    std::fill(best, best + kBlock, -kNever);
    visit_block<Kind>(keys, block, panel, [&](int, int query, typename Kind::Sum sum) {
      best[query] = std::max(best[query], Kind::number(sum, panel, query) * keys.scale[block]);
    });
    for (int query = 0; query < kBlock; ++query) {
      float lower = best[query] - bound_of(keys, block, panel, query);
      for (int64_t level = 0; level < k; ++level) {
        float& held = lowers[level * kBlock + query];
        const float smaller = std::min(held, lower);
        held = std::max(held, lower);
        lower = smaller;
      }
    }
  }
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
  static const Kernels kernels = {
      "portable", {scan<Int8>, peaks<Int8>}, {scan<Bf16>, peaks<Bf16>}, dot, nothing, nothing};
  return kernels;
}

}  // namespace vokenray

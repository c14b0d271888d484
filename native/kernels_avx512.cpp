// AVX-512 with VNNI (int8) and BF16. Only kernels live here: nothing of the standard library is instantiated, since the
// linker could then hand code for this processor to callers on another.
#include "kernels.h"

#if defined(__x86_64__) && defined(__GNUC__)

#include <immintrin.h>

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16")

namespace vokenray {
namespace {

constexpr int kRows = 8;  // keys whose sums are held in registers at a time, for two vectors of 16 queries

inline __m512 bounds(const KeyBlocks& keys, int64_t block, const QueryPanel& panel, int half) {
  const __m512 by_norm = _mm512_loadu_ps(panel.by_norm + half * kHalf);
  const __m512 by_residual = _mm512_loadu_ps(panel.by_residual + half * kHalf);
  const __m512 constant = _mm512_loadu_ps(panel.constant + half * kHalf);
  return _mm512_fmadd_ps(by_norm, _mm512_set1_ps(keys.norm[block]),
                         _mm512_fmadd_ps(by_residual, _mm512_set1_ps(keys.residual[block]), constant));
}

inline int32_t load_group(const uint8_t* bytes) {
  int32_t group;
  __builtin_memcpy(&group, bytes, 4);
  return group;
}

struct Int8 {
  using Vector = __m512i;
  static Vector start(const QueryPanel& panel, int half) { return _mm512_loadu_si512(panel.start + half * kHalf); }
  static Vector load(const uint8_t* queries) { return _mm512_loadu_si512(queries); }
  static Vector add(Vector sum, int32_t key, Vector queries) {
    return _mm512_dpbusd_epi32(sum, _mm512_set1_epi32(key), queries);
  }
  static Vector larger(Vector left, Vector right) { return _mm512_max_epi32(left, right); }
  static __mmask16 reaches(Vector sum, Vector lowest) { return _mm512_cmpge_epi32_mask(sum, lowest); }
  static void store(uint8_t* where, Vector sum) { _mm512_storeu_si512(where, sum); }
  // The lowest sum that counts: two below (threshold - bound) / scale and a part in 2^20, which covers this arithmetic.
  static Vector lowest(const KeyBlocks& keys, int64_t block, const QueryPanel& panel, int half) {
    const __m512 room = _mm512_sub_ps(_mm512_loadu_ps(panel.threshold + half * kHalf), bounds(keys, block, panel, half));
    __m512 sum = _mm512_mul_ps(room, _mm512_set1_ps(keys.inverse[block]));
    sum = _mm512_min_ps(sum, _mm512_set1_ps(kLargestInteger));
    const __m512 slack = _mm512_fmadd_ps(_mm512_abs_ps(sum), _mm512_set1_ps(0x1p-20f), _mm512_set1_ps(2.0f));
    return _mm512_cvttps_epi32(_mm512_sub_ps(sum, slack));  // out of range: INT32_MIN, which every sum reaches
  }
};

struct Bf16 {
  using Vector = __m512;
  static Vector start(const QueryPanel&, int) { return _mm512_setzero_ps(); }
  static Vector load(const uint8_t* queries) { return _mm512_loadu_ps(queries); }
  static Vector add(Vector sum, int32_t key, Vector queries) {
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(key), (__m512bh)queries);
  }
  static Vector larger(Vector left, Vector right) { return _mm512_max_ps(left, right); }
  static __mmask16 reaches(Vector sum, Vector lowest) { return _mm512_cmp_ps_mask(sum, lowest, _CMP_GE_OQ); }
  static void store(uint8_t* where, Vector sum) { _mm512_storeu_ps(where, sum); }
  static Vector lowest(const KeyBlocks& keys, int64_t block, const QueryPanel& panel, int half) {
    return _mm512_sub_ps(_mm512_loadu_ps(panel.threshold + half * kHalf), bounds(keys, block, panel, half));
  }
};

template <class Kind>
inline __attribute__((always_inline)) void group_step(const uint8_t* key, const uint8_t* left, const uint8_t* right,
                                                      typename Kind::Vector (&sums)[kRows][2]) {
  const typename Kind::Vector queries_left = Kind::load(left), queries_right = Kind::load(right);
#pragma GCC unroll 8
  for (int row = 0; row < kRows; ++row) {
    const int32_t group = load_group(key + row * kTileBytes);
    sums[row][0] = Kind::add(sums[row][0], group, queries_left);
    sums[row][1] = Kind::add(sums[row][1], group, queries_right);
  }
}

template <class Kind>
inline __attribute__((always_inline)) void multiply(const uint8_t* key, const uint8_t* left, const uint8_t* right,
                                                    int groups, typename Kind::Vector (&sums)[kRows][2]) {
  const int whole = groups / kGroups, rest = groups % kGroups;
  for (int tile = 0; tile < whole; ++tile) {
#pragma GCC unroll 4
    for (int group = 0; group < kGroups; ++group) {
      group_step<Kind>(key + group * 4, left + group * kTileBytes, right + group * kTileBytes, sums);
    }
    key += kTile, left += kTile, right += kTile;
  }
  for (int group = 0; group < rest; ++group) {
    group_step<Kind>(key + group * 4, left + group * kTileBytes, right + group * kTileBytes, sums);
  }
}

template <class Kind>
inline __attribute__((always_inline)) bool reached(typename Kind::Vector (&sums)[kRows][2], int half,
                                                   typename Kind::Vector lowest) {
  typename Kind::Vector best[4];
#pragma GCC unroll 4
  for (int row = 0; row < 4; ++row) best[row] = Kind::larger(sums[row][half], sums[row + 4][half]);
  const auto top = Kind::larger(Kind::larger(best[0], best[1]), Kind::larger(best[2], best[3]));
  return Kind::reaches(top, lowest) != 0;
}

template <class Kind>
int64_t scan(const KeyBlocks& keys, int64_t first, int64_t last, const QueryPanel& panel, Hits* hits) {
  using Vector = typename Kind::Vector;
  const size_t half_bytes = static_cast<size_t>(keys.tiles_per_row) * kTile;
  const Vector start_left = Kind::start(panel, 0), start_right = Kind::start(panel, 1);
  for (int64_t block = first; block < last; ++block) {
    const uint8_t* block_tiles = keys.tiles + static_cast<size_t>(block) * 2 * half_bytes;
    const Vector left = Kind::lowest(keys, block, panel, 0), right = Kind::lowest(keys, block, panel, 1);
    uint32_t found = 0;
    for (int part = 0; part < kBlock / kRows; ++part) {
      const uint8_t* key = block_tiles + (part / 2) * half_bytes + (part % 2) * kRows * kTileBytes;
      Vector sums[kRows][2];
#pragma GCC unroll 8
      for (int row = 0; row < kRows; ++row) sums[row][0] = start_left, sums[row][1] = start_right;
      multiply<Kind>(key, panel.tiles, panel.tiles + half_bytes, keys.groups, sums);
      if (__builtin_expect(!reached<Kind>(sums, 0, left) && !reached<Kind>(sums, 1, right), 1)) continue;
      if (!found) __builtin_memset(hits->queries, 0, sizeof hits->queries);
#pragma GCC unroll 8
      for (int row = 0; row < kRows; ++row) {
        const int place = part * kRows + row;
        Kind::store(hits->scores + place * kBlock * 4, sums[row][0]);
        Kind::store(hits->scores + place * kBlock * 4 + kTileBytes, sums[row][1]);
        const uint32_t bits = static_cast<uint32_t>(Kind::reaches(sums[row][0], left)) |
                              static_cast<uint32_t>(Kind::reaches(sums[row][1], right)) << kHalf;
        hits->queries[place] = bits;
        found |= bits;
      }
    }
    if (found) return block;
  }
  return last;
}

double dot(const float* left, const float* right, int64_t width) {
  __m512d sums[4] = {_mm512_setzero_pd(), _mm512_setzero_pd(), _mm512_setzero_pd(), _mm512_setzero_pd()};
  int64_t i = 0;
  for (; i + 32 <= width; i += 32) {
#pragma GCC unroll 4
    for (int part = 0; part < 4; ++part) {
      const __m512d a = _mm512_cvtps_pd(_mm256_loadu_ps(left + i + part * 8));
      const __m512d b = _mm512_cvtps_pd(_mm256_loadu_ps(right + i + part * 8));
      sums[part] = _mm512_fmadd_pd(a, b, sums[part]);
    }
  }
  for (; i < width; i += 8) {
    const __mmask8 mask = static_cast<__mmask8>(width - i >= 8 ? 255 : (1 << (width - i)) - 1);
    const __m512d a = _mm512_cvtps_pd(_mm256_maskz_loadu_ps(mask, left + i));
    const __m512d b = _mm512_cvtps_pd(_mm256_maskz_loadu_ps(mask, right + i));
    sums[0] = _mm512_fmadd_pd(a, b, sums[0]);
  }
  return _mm512_reduce_add_pd(_mm512_add_pd(_mm512_add_pd(sums[0], sums[1]), _mm512_add_pd(sums[2], sums[3])));
}

void nothing() {}

}  // namespace
}  // namespace vokenray

#pragma GCC pop_options

namespace vokenray {

const Kernels* avx512_kernels() {
  const bool base = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                    __builtin_cpu_supports("avx512vnni");
  static const Kernels both = {"avx512", scan<Int8>, scan<Bf16>, dot, nothing, nothing};
  static const Kernels only_int8 = {"avx512", scan<Int8>, nullptr, dot, nothing, nothing};
  if (!base) return nullptr;
  return __builtin_cpu_supports("avx512bf16") ? &both : &only_int8;
}

}  // namespace vokenray

#else

namespace vokenray {
const Kernels* avx512_kernels() { return nullptr; }
}  // namespace vokenray

#endif

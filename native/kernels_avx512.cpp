// AVX-512 with VNNI (int8) and BF16.
#include "kernels.h"

#if defined(__x86_64__) && defined(__GNUC__)

#include "avx512.h"

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16")

namespace vokenray {
namespace {

// The 4 bytes of a group in all 16 lanes.
inline __m512i repeated(const uint8_t* group) {
  int32_t bytes;
  __builtin_memcpy(&bytes, group, 4);
  return _mm512_set1_epi32(bytes);
}

struct Int8 : Int8Sums {
  static Vector load(const uint8_t* queries) { return (Vector)_mm512_loadu_si512(queries); }
  static Vector repeat(const uint8_t* group) { return (Vector)repeated(group); }
  static Vector add(Vector sum, Vector key, Vector queries) {
    return (Vector)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)key, (__m512i)queries);
  }
};

struct Bf16 : Bf16Sums {
  static Vector load(const uint8_t* queries) { return _mm512_loadu_ps(queries); }
  static Vector repeat(const uint8_t* group) { return _mm512_castsi512_ps(repeated(group)); }
  static Vector add(Vector sum, Vector key, Vector queries) {
    return _mm512_dpbf16_ps(sum, (__m512bh)key, (__m512bh)queries);
  }
};

// The sums of 8 keys and 32 queries, in registers: [row][half of the queries].
template <class Kind>
inline __attribute__((always_inline)) void multiply(const uint8_t* key, const QueryPanel& panel, size_t half_bytes,
                                                    int groups, typename Kind::Vector (&sums)[2 * kRows]) {
  using Vector = typename Kind::Vector;
  const uint8_t* queries = panel.tiles;
#pragma GCC unroll 16
  for (int i = 0; i < 2 * kRows; ++i) sums[i] = Kind::zero();
  for (int group = 0; group < groups; ++group) {
    const Vector left = Kind::load(queries), right = Kind::load(queries + half_bytes);
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row) {
      const Vector values = Kind::repeat(key + row * kTileBytes);
      sums[2 * row] = Kind::add(sums[2 * row], values, left);
      sums[2 * row + 1] = Kind::add(sums[2 * row + 1], values, right);
    }
    queries += kTileBytes;
    key += 4 + (group % kGroups == kGroups - 1) * (kTile - kTileBytes);
  }
}

inline const uint8_t* rows_of(const KeyBlocks& keys, int64_t block, int part, size_t half_bytes) {
  return keys.tiles + (static_cast<size_t>(block) * 2 + part / 2) * half_bytes + (part % 2) * kRows * kTileBytes;
}

// Asks for 8 rows ahead of their use: rows of a tile apart are no stream that the processor would see.
inline void fetch(const uint8_t* key, int tiles) {
  for (int tile = 0; tile < tiles; ++tile, key += kTile) {
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row) _mm_prefetch(key + row * kTileBytes, _MM_HINT_T0);
  }
}

template <class Kind>
int64_t scan(const KeyBlocks& keys, int64_t first, int64_t last, const QueryPanel& panel, Hits* hits) {
  using Vector = typename Kind::Vector;
  const size_t half_bytes = static_cast<size_t>(keys.tiles_per_row) * kTile;
  for (int64_t block = first; block < last; ++block) {
    if (hits->count >= kEnoughHits) return block;
    const Vector left = Kind::lowest(keys, block, panel, 0), right = Kind::lowest(keys, block, panel, 1);
    for (int part = 0; part < kBlock / kRows; ++part) {
      Vector sums[2 * kRows];
      const uint8_t* key = rows_of(keys, block, part, half_bytes);
      if (block + 1 < last) fetch(key + 2 * half_bytes, keys.tiles_per_row);
      multiply<Kind>(key, panel, half_bytes, keys.groups, sums);
      const Vector best_left = best_of<Kind>(sums, 0), best_right = best_of<Kind>(sums, 1);
      if (__builtin_expect(!(Kind::reaches(best_left, left) | Kind::reaches(best_right, right)), 1)) continue;
      Vector found[2 * kRows];  // a copy: `sums` itself would leave the registers if its address were taken
#pragma GCC unroll 16
      for (int i = 0; i < 2 * kRows; ++i) found[i] = sums[i];
      collect<Kind>(found, static_cast<int32_t>(block * kBlock + part * kRows), left, right, hits);
    }
  }
  return last;
}

template <class Kind>
void peaks(const KeyBlocks& keys, int64_t first, int64_t last, const QueryPanel& panel, int64_t k, float* lowers) {
  const size_t half_bytes = static_cast<size_t>(keys.tiles_per_row) * kTile;
  for (int64_t block = first; block < last; ++block) {
    for (int part = 0; part < kBlock / kRows; ++part) {
      typename Kind::Vector sums[2 * kRows];
      multiply<Kind>(rows_of(keys, block, part, half_bytes), panel, half_bytes, keys.groups, sums);
      insert_best<Kind>(sums, keys, block, panel, k, lowers);
    }
  }
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
  static const Kernels both = {
      "avx512", {scan<Int8>, peaks<Int8>}, {scan<Bf16>, peaks<Bf16>}, dot, nothing, nothing};
  static const Kernels only_int8 = {"avx512", {scan<Int8>, peaks<Int8>}, {nullptr, nullptr}, dot, nothing, nothing};
  if (!base) return nullptr;
  return __builtin_cpu_supports("avx512bf16") ? &both : &only_int8;
}

}  // namespace vokenray

#else

namespace vokenray {
const Kernels* avx512_kernels() { return nullptr; }
}  // namespace vokenray

#endif

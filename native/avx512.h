// What the kernels on AVX-512 and AMX share: sums of 16 queries in a vector, which of them count, and what is kept of
// them. Only kernels include it: nothing of the standard library is instantiated here, since the linker could then hand
// code for these processors to callers on another.
#pragma once

#include <immintrin.h>

#include "kernels.h"

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq")

namespace vokenray {
namespace {

constexpr int kRows = 8;  // keys that are looked at together

// The bounds of 16 queries with the keys of a block.
inline __m512 bounds(const KeyBlocks& keys, int64_t block, const QueryPanel& panel, int half) {
  const __m512 by_norm = _mm512_loadu_ps(panel.by_norm + half * kHalf);
  const __m512 by_residual = _mm512_loadu_ps(panel.by_residual + half * kHalf);
  const __m512 constant = _mm512_loadu_ps(panel.constant + half * kHalf);
  return _mm512_fmadd_ps(by_norm, _mm512_set1_ps(keys.norm[block]),
                         _mm512_fmadd_ps(by_residual, _mm512_set1_ps(keys.residual[block]), constant));
}

// Of 16 numbers, not of 8 as in __m512i: with two types for one register gcc copies every sum in every step.
typedef int Int32s __attribute__((vector_size(64)));

struct Int8Sums {
  using Vector = Int32s;
  static Vector zero() { return (Vector)_mm512_setzero_si512(); }
  static __m512i bits(Vector sum) { return (__m512i)sum; }
  static Vector larger(Vector left, Vector right) { return (Vector)_mm512_max_epi32((__m512i)left, (__m512i)right); }
  static __mmask16 reaches(Vector sum, Vector lowest) {
    return _mm512_cmpge_epi32_mask((__m512i)sum, (__m512i)lowest);
  }
  static __m512 number(Vector sum, const QueryPanel& panel, int half) {
    return _mm512_cvtepi32_ps(_mm512_add_epi32((__m512i)sum, _mm512_loadu_si512(panel.start + half * kHalf)));
  }
  // The lowest sum that counts: two below (threshold - bound) / scale and a part in 2^20, which covers this arithmetic.
  static Vector lowest(const KeyBlocks& keys, int64_t block, const QueryPanel& panel, int half) {
    const __m512 threshold = _mm512_loadu_ps(panel.threshold + half * kHalf);
    const __m512 room = _mm512_sub_ps(threshold, bounds(keys, block, panel, half));
    const __m512 most = _mm512_set1_ps(kLargestInteger), least = _mm512_set1_ps(-kLargestInteger);
    __m512 sum = _mm512_mul_ps(room, _mm512_set1_ps(keys.inverse[block]));
    sum = _mm512_max_ps(_mm512_min_ps(sum, most), least);
    const __m512 slack = _mm512_fmadd_ps(_mm512_abs_ps(sum), _mm512_set1_ps(0x1p-20f), _mm512_set1_ps(2.0f));
    const __m512i start = _mm512_loadu_si512(panel.start + half * kHalf);
    return (Vector)_mm512_sub_epi32(_mm512_cvttps_epi32(_mm512_sub_ps(sum, slack)), start);
  }
};

struct Bf16Sums {
  using Vector = __m512;
  static Vector zero() { return _mm512_setzero_ps(); }
  static __m512i bits(Vector sum) { return _mm512_castps_si512(sum); }
  static Vector larger(Vector left, Vector right) { return _mm512_max_ps(left, right); }
  static __mmask16 reaches(Vector sum, Vector lowest) { return _mm512_cmp_ps_mask(sum, lowest, _CMP_GE_OQ); }
  static __m512 number(Vector sum, const QueryPanel&, int) { return sum; }
  static Vector lowest(const KeyBlocks& keys, int64_t block, const QueryPanel& panel, int half) {
    return _mm512_sub_ps(_mm512_loadu_ps(panel.threshold + half * kHalf), bounds(keys, block, panel, half));
  }
};

// Adds a row of sums to the hits, mostly none, without a branch that would be guessed wrong: of 16 queries from
// `first_query` on, those in `mask`.
inline int64_t add_hits(Hits* hits, int64_t count, int32_t place, int first_query, __mmask16 mask, __m512i sums) {
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i queries = _mm512_add_epi32(lanes, _mm512_set1_epi32(first_query));
  _mm512_storeu_si512(hits->places + count, _mm512_set1_epi32(place));
  _mm512_storeu_si512(hits->queries + count, _mm512_maskz_compress_epi32(mask, queries));
  _mm512_storeu_si512(hits->sums + count, _mm512_maskz_compress_epi32(mask, sums));
  return count + __builtin_popcount(mask);
}

// Adds what counts among the sums of 8 keys: [row][half of the queries].
template <class Sums>
__attribute__((noinline)) void collect(const typename Sums::Vector* sums, int32_t first_place,
                                       typename Sums::Vector left, typename Sums::Vector right, Hits* hits) {
  int64_t count = hits->count;
  for (int row = 0; row < kRows; ++row, sums += 2) {
    count = add_hits(hits, count, first_place + row, 0, Sums::reaches(sums[0], left), Sums::bits(sums[0]));
    count = add_hits(hits, count, first_place + row, kHalf, Sums::reaches(sums[1], right), Sums::bits(sums[1]));
  }
  hits->count = count;
}

// The largest of 8 keys' sums with each of 16 queries.
template <class Sums>
inline __attribute__((always_inline)) typename Sums::Vector best_of(const typename Sums::Vector* sums, int half) {
  typename Sums::Vector best[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) best[i] = Sums::larger(sums[2 * i + half], sums[2 * (i + 4) + half]);
  return Sums::larger(Sums::larger(best[0], best[1]), Sums::larger(best[2], best[3]));
}

// Puts 16 queries' lower bounds among the k largest so far.
inline void insert(__m512 lower, int64_t k, float* lowers) {
  for (int64_t level = 0; level < k; ++level, lowers += kBlock) {
    const __m512 held = _mm512_loadu_ps(lowers);
    _mm512_storeu_ps(lowers, _mm512_max_ps(held, lower));
    lower = _mm512_min_ps(held, lower);
  }
}

// Puts the best of 8 keys of a block among the k largest lower bounds of 32 queries.
template <class Sums>
inline __attribute__((always_inline)) void insert_best(const typename Sums::Vector* sums, const KeyBlocks& keys,
                                                       int64_t block, const QueryPanel& panel, int64_t k,
                                                       float* lowers) {
  const __m512 scale = _mm512_set1_ps(keys.scale[block]);
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    const __m512 best = Sums::number(best_of<Sums>(sums, half), panel, half);
    insert(_mm512_fmsub_ps(best, scale, bounds(keys, block, panel, half)), k, lowers + half * kHalf);
  }
}

}  // namespace
}  // namespace vokenray

#pragma GCC pop_options

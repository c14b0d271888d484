// AVX2 and FMA, with or without AVX-VNNI, for processors without AVX-512. Only kernels live here: nothing of the
// standard library is instantiated, since the linker could then hand code for this processor to callers on another.
#include "kernels.h"

#if defined(__x86_64__) && defined(__GNUC__)

#include <cpuid.h>
#include <immintrin.h>

#pragma GCC push_options
#pragma GCC target("avx2,fma")

namespace vokenray {
namespace {

constexpr int kRows = 4;   // keys whose sums are held in registers at a time, for two vectors of queries
constexpr int kLanes = 8;  // queries in a vector
constexpr int kPairs = kRows * 2 * kLanes;

// Of 8 numbers, not of 4 as in __m256i: with two types for one register gcc copies every sum in every step.
typedef int Int32s __attribute__((vector_size(32)));

inline __m256 bounds(const KeyBlocks& keys, int64_t block, const QueryPanel& panel, int query) {
  const __m256 by_norm = _mm256_loadu_ps(panel.by_norm + query);
  const __m256 by_residual = _mm256_loadu_ps(panel.by_residual + query);
  const __m256 constant = _mm256_loadu_ps(panel.constant + query);
  return _mm256_fmadd_ps(by_norm, _mm256_set1_ps(keys.norm[block]),
                         _mm256_fmadd_ps(by_residual, _mm256_set1_ps(keys.residual[block]), constant));
}

inline __m256i integers(const void* where) { return _mm256_loadu_si256(static_cast<const __m256i*>(where)); }

inline __m256i repeated(const uint8_t* group) {
  int32_t bytes;
  __builtin_memcpy(&bytes, group, 4);
  return _mm256_set1_epi32(bytes);
}

// Bytes are multiplied as |query| times key with the query's sign: two such products fit 16 bits, which the instruction
// would otherwise cut off at.
struct Int8 {
  using Vector = Int32s;
  struct Queries {
    __m256i values, sizes;
  };
  static Vector start(const QueryPanel& panel, int query) {  // others' sums lack it, so must these
    return (Vector)_mm256_sub_epi32(_mm256_setzero_si256(), integers(panel.start + query));
  }
  static Queries load(const uint8_t* queries) {
    const __m256i values = integers(queries);
    return {values, _mm256_abs_epi8(values)};
  }
  static __m256i key(const uint8_t* group) { return _mm256_xor_si256(repeated(group), _mm256_set1_epi8(-128)); }
  static Vector add(Vector sum, __m256i key, const Queries& queries) {
    const __m256i pairs = _mm256_maddubs_epi16(queries.sizes, _mm256_sign_epi8(key, queries.values));
    return sum + (Vector)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
  }
  static Vector larger(Vector left, Vector right) { return (Vector)_mm256_max_epi32((__m256i)left, (__m256i)right); }
  static int reaches(Vector sum, Vector lowest) {
    return 255 ^ _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32((__m256i)lowest, (__m256i)sum)));
  }
  static __m256 number(Vector sum, const QueryPanel& panel, int query) {
    return _mm256_cvtepi32_ps(_mm256_add_epi32((__m256i)sum, integers(panel.start + query)));
  }
  // As in avx512.h: two below, and a part in 2^20, for the rounding of this arithmetic.
  static Vector lowest(const KeyBlocks& keys, int64_t block, const QueryPanel& panel, int query) {
    const __m256 room = _mm256_sub_ps(_mm256_loadu_ps(panel.threshold + query), bounds(keys, block, panel, query));
    const __m256 most = _mm256_set1_ps(kLargestInteger), least = _mm256_set1_ps(-kLargestInteger);
    __m256 sum = _mm256_mul_ps(room, _mm256_set1_ps(keys.inverse[block]));
    sum = _mm256_max_ps(_mm256_min_ps(sum, most), least);
    const __m256 size = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), sum);
    const __m256 slack = _mm256_fmadd_ps(size, _mm256_set1_ps(0x1p-20f), _mm256_set1_ps(2.0f));
    return (Vector)_mm256_sub_epi32(_mm256_cvttps_epi32(_mm256_sub_ps(sum, slack)), integers(panel.start + query));
  }
};

// With AVX-VNNI one instruction does all that. It is written out, since with a target of its own this could not share
// the templates below.
struct Vnni : Int8 {
  using Queries = __m256i;
  static Vector start(const QueryPanel&, int) { return (Vector)_mm256_setzero_si256(); }
  static Queries load(const uint8_t* queries) { return integers(queries); }
  static __m256i key(const uint8_t* group) { return repeated(group); }
  static Vector add(Vector sum, __m256i key, __m256i queries) {
    __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(key), "x"(queries));
    return sum;
  }
};

struct Bf16 {
  using Vector = __m256;
  struct Queries {
    __m256 even, odd;
  };
  static Vector start(const QueryPanel&, int) { return _mm256_setzero_ps(); }
  static Queries halves(__m256i pairs) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)),
            _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(-65536)))};
  }
  static Queries load(const uint8_t* queries) { return halves(integers(queries)); }
  static Queries key(const uint8_t* group) { return halves(repeated(group)); }
  static Vector add(Vector sum, const Queries& key, const Queries& queries) {
    return _mm256_fmadd_ps(key.odd, queries.odd, _mm256_fmadd_ps(key.even, queries.even, sum));
  }
  static Vector larger(Vector left, Vector right) { return _mm256_max_ps(left, right); }
  static int reaches(Vector sum, Vector lowest) { return _mm256_movemask_ps(_mm256_cmp_ps(sum, lowest, _CMP_GE_OQ)); }
  static __m256 number(Vector sum, const QueryPanel&, int) { return sum; }
  static Vector lowest(const KeyBlocks& keys, int64_t block, const QueryPanel& panel, int query) {
    return _mm256_sub_ps(_mm256_loadu_ps(panel.threshold + query), bounds(keys, block, panel, query));
  }
};

// The sums of 4 keys and 16 queries from `query` on: [row][vector].
template <class Kind>
inline __attribute__((always_inline)) void multiply(const uint8_t* key, const QueryPanel& panel, int query,
                                                    size_t half_bytes, int groups,
                                                    typename Kind::Vector (&sums)[2 * kRows]) {
  const uint8_t* column = panel.tiles + (query / kHalf) * half_bytes;
#pragma GCC unroll 8
  for (int i = 0; i < 2 * kRows; ++i) sums[i] = Kind::start(panel, query + (i % 2) * kLanes);
  for (int group = 0; group < groups; ++group) {
    const auto left = Kind::load(column), right = Kind::load(column + 32);
#pragma GCC unroll 4
    for (int row = 0; row < kRows; ++row) {
      const auto values = Kind::key(key + row * kTileBytes);
      sums[2 * row] = Kind::add(sums[2 * row], values, left);
      sums[2 * row + 1] = Kind::add(sums[2 * row + 1], values, right);
    }
    column += kTileBytes;
    key += 4 + (group % kGroups == kGroups - 1) * (kTile - kTileBytes);
  }
}

template <class Kind>
inline __attribute__((always_inline)) typename Kind::Vector best_of(const typename Kind::Vector (&sums)[2 * kRows],
                                                                    int vector) {
  return Kind::larger(Kind::larger(sums[vector], sums[2 + vector]), Kind::larger(sums[4 + vector], sums[6 + vector]));
}

inline const uint8_t* rows_of(const KeyBlocks& keys, int64_t block, int part, size_t half_bytes) {
  constexpr int kParts = kHalf / kRows;
  const size_t half = static_cast<size_t>(block) * 2 + part / kParts;
  return keys.tiles + half * half_bytes + (part % kParts) * kRows * kTileBytes;
}

template <class Kind>
__attribute__((noinline)) void collect(const typename Kind::Vector* sums, int32_t first_place, int first_query,
                                       typename Kind::Vector left, typename Kind::Vector right, Hits* hits) {
  int32_t numbers[kPairs];
  __builtin_memcpy(numbers, sums, sizeof numbers);
  for (int row = 0; row < kRows; ++row) {
    int bits = Kind::reaches(sums[2 * row], left) | Kind::reaches(sums[2 * row + 1], right) << kLanes;
    for (; bits; bits &= bits - 1) {
      const int query = __builtin_ctz(static_cast<unsigned>(bits));
      hits->places[hits->count] = first_place + row;
      hits->queries[hits->count] = first_query + query;
      hits->sums[hits->count++] = numbers[row * 2 * kLanes + query];
    }
  }
}

template <class Kind>
int64_t scan(const KeyBlocks& keys, int64_t first, int64_t last, const QueryPanel& panel, Hits* hits) {
  using Vector = typename Kind::Vector;
  const size_t half_bytes = static_cast<size_t>(keys.tiles_per_row) * kTile;
  for (int64_t block = first; block < last; ++block) {
    if (hits->count >= kEnoughHits) return block;
    for (int query = 0; query < kBlock; query += kHalf) {
      const Vector left = Kind::lowest(keys, block, panel, query);
      const Vector right = Kind::lowest(keys, block, panel, query + kLanes);
      for (int part = 0; part < kBlock / kRows; ++part) {
        Vector sums[2 * kRows];
        multiply<Kind>(rows_of(keys, block, part, half_bytes), panel, query, half_bytes, keys.groups, sums);
        const int reached = Kind::reaches(best_of<Kind>(sums, 0), left) | Kind::reaches(best_of<Kind>(sums, 1), right);
        if (__builtin_expect(!reached, 1)) continue;
        Vector found[2 * kRows];  // a copy: `sums` itself would leave the registers if its address were taken
#pragma GCC unroll 8
        for (int i = 0; i < 2 * kRows; ++i) found[i] = sums[i];
        collect<Kind>(found, static_cast<int32_t>(block * kBlock + part * kRows), query, left, right, hits);
      }
    }
  }
  return last;
}

inline void insert(__m256 lower, int64_t k, float* lowers) {
  for (int64_t level = 0; level < k; ++level, lowers += kBlock) {
    const __m256 held = _mm256_loadu_ps(lowers);
    _mm256_storeu_ps(lowers, _mm256_max_ps(held, lower));
    lower = _mm256_min_ps(held, lower);
  }
}

template <class Kind>
void peaks(const KeyBlocks& keys, int64_t first, int64_t last, const QueryPanel& panel, int64_t k, float* lowers) {
  const size_t half_bytes = static_cast<size_t>(keys.tiles_per_row) * kTile;
  for (int64_t block = first; block < last; ++block) {
    const __m256 scale = _mm256_set1_ps(keys.scale[block]);
    for (int query = 0; query < kBlock; query += kHalf) {
      const __m256 left = bounds(keys, block, panel, query), right = bounds(keys, block, panel, query + kLanes);
      for (int part = 0; part < kBlock / kRows; ++part) {
        typename Kind::Vector sums[2 * kRows];
        multiply<Kind>(rows_of(keys, block, part, half_bytes), panel, query, half_bytes, keys.groups, sums);
        const __m256 best_left = Kind::number(best_of<Kind>(sums, 0), panel, query);
        const __m256 best_right = Kind::number(best_of<Kind>(sums, 1), panel, query + kLanes);
        insert(_mm256_fmsub_ps(best_left, scale, left), k, lowers + query);
        insert(_mm256_fmsub_ps(best_right, scale, right), k, lowers + query + kLanes);
      }
    }
  }
}

double dot(const float* left, const float* right, int64_t width) {
  __m256d sums[4] = {_mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd()};
  int64_t i = 0;
  for (; i + 16 <= width; i += 16) {
#pragma GCC unroll 4
    for (int part = 0; part < 4; ++part) {
      const __m256d a = _mm256_cvtps_pd(_mm_loadu_ps(left + i + part * 4));
      const __m256d b = _mm256_cvtps_pd(_mm_loadu_ps(right + i + part * 4));
      sums[part] = _mm256_fmadd_pd(a, b, sums[part]);
    }
  }
  double rest = 0, parts[4];
  for (; i < width; ++i) rest += static_cast<double>(left[i]) * right[i];
  _mm256_storeu_pd(parts, _mm256_add_pd(_mm256_add_pd(sums[0], sums[1]), _mm256_add_pd(sums[2], sums[3])));
  return rest + (parts[0] + parts[1]) + (parts[2] + parts[3]);
}

void nothing() {}

}  // namespace
}  // namespace vokenray

#pragma GCC pop_options

namespace vokenray {
namespace {

bool has_avx2() {
  static const bool has = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  return has;
}

bool has_vnni() {
  unsigned a, b, c, d;
  static const bool has = __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & (1u << 4));
  return has;
}

}  // namespace

const Kernels* avx2_kernels() {
  static const Kernels kernels = {"avx2", {scan<Int8>, peaks<Int8>}, {scan<Bf16>, peaks<Bf16>}, dot, nothing, nothing};
  return has_avx2() ? &kernels : nullptr;
}

const Kernels* avx_vnni_kernels() {
  static const Kernels kernels = {
      "avx_vnni", {scan<Vnni>, peaks<Vnni>}, {scan<Bf16>, peaks<Bf16>}, dot, nothing, nothing};
  return has_avx2() && has_vnni() ? &kernels : nullptr;
}

}  // namespace vokenray

#else

namespace vokenray {
const Kernels* avx2_kernels() { return nullptr; }
const Kernels* avx_vnni_kernels() { return nullptr; }
}  // namespace vokenray

#endif

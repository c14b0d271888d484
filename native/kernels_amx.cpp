// AMX: blocks of 32 keys by 32 queries on the tile unit, the four tiles of sums compared from the first-level cache.
// Tiles 0-3 hold sums [key half][query half], 4-5 keys, 6-7 queries.
#include "kernels.h"

#if defined(__x86_64__) && defined(__GNUC__) && defined(__linux__)

#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#pragma GCC push_options
#pragma GCC target("amx-tile,amx-int8,amx-bf16,avx512f,avx512bw,avx512vl,avx512dq")

namespace vokenray {
namespace {

struct __attribute__((packed)) TileConfig {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};

void begin() {
  TileConfig config = {};
  config.palette = 1;
  for (int tile = 0; tile < 8; ++tile) {
    config.row_bytes[tile] = kTileBytes;
    config.rows[tile] = kHalf;
  }
  _tile_loadconfig(&config);
}

void end() { _tile_release(); }

inline __m512 bounds(const KeyBlocks& keys, int64_t block, const QueryPanel& panel, int half) {
  const __m512 by_norm = _mm512_loadu_ps(panel.by_norm + half * kHalf);
  const __m512 by_residual = _mm512_loadu_ps(panel.by_residual + half * kHalf);
  const __m512 constant = _mm512_loadu_ps(panel.constant + half * kHalf);
  return _mm512_fmadd_ps(by_norm, _mm512_set1_ps(keys.norm[block]),
                         _mm512_fmadd_ps(by_residual, _mm512_set1_ps(keys.residual[block]), constant));
}

struct Int8 {
  static __attribute__((always_inline)) void start(const QueryPanel& panel) {
    _tile_loadd(0, panel.start, 0);  // stride 0: the same 16 sums in every row
    _tile_loadd(1, panel.start + kHalf, 0);
    _tile_loadd(2, panel.start, 0);
    _tile_loadd(3, panel.start + kHalf, 0);
  }
  static __attribute__((always_inline)) void multiply() {
    _tile_dpbusd(0, 4, 6);
    _tile_dpbusd(1, 4, 7);
    _tile_dpbusd(2, 5, 6);
    _tile_dpbusd(3, 5, 7);
  }
  using Vector = __m512i;
  static Vector load(const uint8_t* sums) { return _mm512_load_si512(sums); }
  static Vector larger(Vector left, Vector right) { return _mm512_max_epi32(left, right); }
  static __mmask16 reaches(Vector sum, Vector lowest) { return _mm512_cmpge_epi32_mask(sum, lowest); }
  // As in kernels_avx512.cpp: two below, and a part in 2^20, for the rounding of this arithmetic.
  static Vector lowest(const KeyBlocks& keys, int64_t block, const QueryPanel& panel, int half) {
    const __m512 room = _mm512_sub_ps(_mm512_loadu_ps(panel.threshold + half * kHalf), bounds(keys, block, panel, half));
    __m512 sum = _mm512_mul_ps(room, _mm512_set1_ps(keys.inverse[block]));
    sum = _mm512_min_ps(sum, _mm512_set1_ps(kLargestInteger));
    const __m512 slack = _mm512_fmadd_ps(_mm512_abs_ps(sum), _mm512_set1_ps(0x1p-20f), _mm512_set1_ps(2.0f));
    return _mm512_cvttps_epi32(_mm512_sub_ps(sum, slack));
  }
};

struct Bf16 {
  static __attribute__((always_inline)) void start(const QueryPanel&) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  static __attribute__((always_inline)) void multiply() {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  using Vector = __m512;
  static Vector load(const uint8_t* sums) { return _mm512_load_ps(sums); }
  static Vector larger(Vector left, Vector right) { return _mm512_max_ps(left, right); }
  static __mmask16 reaches(Vector sum, Vector lowest) { return _mm512_cmp_ps_mask(sum, lowest, _CMP_GE_OQ); }
  static Vector lowest(const KeyBlocks& keys, int64_t block, const QueryPanel& panel, int half) {
    return _mm512_sub_ps(_mm512_loadu_ps(panel.threshold + half * kHalf), bounds(keys, block, panel, half));
  }
};

template <class Kind>
__attribute__((always_inline)) inline bool reached(const uint8_t* scores, int half, typename Kind::Vector lowest) {
  typename Kind::Vector best[4];
#pragma GCC unroll 4
  for (int row = 0; row < 4; ++row) best[row] = Kind::load(scores + row * kBlock * 4 + half * kTileBytes);
#pragma GCC unroll 28
  for (int row = 4; row < kBlock; ++row) {
    best[row % 4] = Kind::larger(best[row % 4], Kind::load(scores + row * kBlock * 4 + half * kTileBytes));
  }
  const auto top = Kind::larger(Kind::larger(best[0], best[1]), Kind::larger(best[2], best[3]));
  return Kind::reaches(top, lowest) != 0;
}

template <class Kind>
int64_t scan(const KeyBlocks& keys, int64_t first, int64_t last, const QueryPanel& panel, Hits* hits) {
  const size_t half_bytes = static_cast<size_t>(keys.tiles_per_row) * kTile;
  uint8_t* scores = hits->scores;
  for (int64_t block = first; block < last; ++block) {
    const uint8_t* key = keys.tiles + static_cast<size_t>(block) * 2 * half_bytes;
    const uint8_t* query = panel.tiles;
    Kind::start(panel);
    for (int tile = 0; tile < keys.tiles_per_row; ++tile, key += kTile, query += kTile) {
      _tile_loadd(4, key, kTileBytes);
      _tile_loadd(6, query, kTileBytes);
      _tile_loadd(5, key + half_bytes, kTileBytes);
      _tile_loadd(7, query + half_bytes, kTileBytes);
      Kind::multiply();
    }
    _tile_stored(0, scores, kBlock * 4);
    _tile_stored(1, scores + kTileBytes, kBlock * 4);
    _tile_stored(2, scores + kHalf * kBlock * 4, kBlock * 4);
    _tile_stored(3, scores + kHalf * kBlock * 4 + kTileBytes, kBlock * 4);
    const auto left = Kind::lowest(keys, block, panel, 0), right = Kind::lowest(keys, block, panel, 1);
    if (!reached<Kind>(scores, 0, left) && !reached<Kind>(scores, 1, right)) continue;
    for (int row = 0; row < kBlock; ++row) {
      const uint8_t* sums = scores + row * kBlock * 4;
      hits->queries[row] = static_cast<uint32_t>(Kind::reaches(Kind::load(sums), left)) |
                           static_cast<uint32_t>(Kind::reaches(Kind::load(sums + kTileBytes), right)) << kHalf;
    }
    return block;
  }
  return last;
}

}  // namespace
}  // namespace vokenray

#pragma GCC pop_options

namespace vokenray {
namespace {

bool processor_has_amx() {
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  const unsigned needed = (1u << 22) | (1u << 24) | (1u << 25);  // AMX-BF16, AMX-TILE, AMX-INT8
  if ((d & needed) != needed) return false;
  unsigned low, high;  // XGETBV: the system saves tile configuration (bit 17) and tile data (bit 18)
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low & (3u << 17)) == (3u << 17);
}

bool system_permits_tiles() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace

const Kernels* amx_kernels() {
  const Kernels* vectors = avx512_kernels();
  if (!vectors || !processor_has_amx() || !system_permits_tiles()) return nullptr;
  static const Kernels kernels = {"amx", scan<Int8>, scan<Bf16>, vectors->dot, begin, end};
  return &kernels;
}

}  // namespace vokenray

#else

namespace vokenray {
const Kernels* amx_kernels() { return nullptr; }
}  // namespace vokenray

#endif

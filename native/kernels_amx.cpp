// AMX: blocks of 32 keys by 32 queries on the tile unit. Tiles 0-3 hold sums [key half][query half], 4-5 keys, 6-7
// queries. While the tile unit multiplies a block, the vector units look through the sums of the one before.
#include "kernels.h"

#if defined(__x86_64__) && defined(__GNUC__) && defined(__linux__)

#include "avx512.h"

#if defined(VOKENRAY_EMULATE_AMX)
#include "amx_emulation.h"
#else
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#pragma GCC push_options
#if defined(VOKENRAY_EMULATE_AMX)
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq")
#else
#pragma GCC target("amx-tile,amx-int8,amx-bf16,avx512f,avx512bw,avx512vl,avx512dq")
#endif

namespace vokenray {
namespace {

// Panels and blocks beyond this share of a first-level cache of 48 KiB do not fit it together: keys, each read once for
// a panel, are then loaded with a hint to leave the cache to the queries, each read for every block.
constexpr size_t kFirstLevelBytes = 40 << 10;

struct TileConfig {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
static_assert(sizeof(TileConfig) == 64, "the layout of LDTILECFG");

void begin() {
  TileConfig config = {};
  config.palette = 1;
  for (int tile = 0; tile < 8; ++tile) {
    config.row_bytes[tile] = kTileBytes;
    config.rows[tile] = kHalf;
  }
#if defined(VOKENRAY_EMULATE_AMX)
  emulated_tiles().configure(&config);
#else
  // Not _tile_loadconfig: gcc 12's names 8 bytes as read, and the rest of the configuration is optimised away.
  __asm__ volatile("ldtilecfg %0" ::"m"(config));
#endif
}

void end() { _tile_release(); }

struct Int8 : Int8Sums {
  static __attribute__((always_inline)) void multiply_left() {
    _tile_dpbusd(0, 4, 6);
    _tile_dpbusd(2, 5, 6);
  }
  static __attribute__((always_inline)) void multiply_right() {
    _tile_dpbusd(1, 4, 7);
    _tile_dpbusd(3, 5, 7);
  }
};

struct Bf16 : Bf16Sums {
  static __attribute__((always_inline)) void multiply_left() {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(2, 5, 6);
  }
  static __attribute__((always_inline)) void multiply_right() {
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(3, 5, 7);
  }
};

template <class Kind>
__attribute__((always_inline)) inline void multiply(const KeyBlocks& keys, int64_t block, const QueryPanel& panel,
                                                    size_t half_bytes) {
  const uint8_t* key = keys.tiles + static_cast<size_t>(block) * 2 * half_bytes;
  const uint8_t* query = panel.tiles;
  const bool fits = 4 * half_bytes <= kFirstLevelBytes;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int tile = 0; tile < keys.tiles_per_row; ++tile, key += kTile, query += kTile) {
    if (fits) {
      _tile_loadd(4, key, kTileBytes);
      _tile_loadd(5, key + half_bytes, kTileBytes);
    } else {
      _tile_stream_loadd(4, key, kTileBytes);
      _tile_stream_loadd(5, key + half_bytes, kTileBytes);
    }
    _tile_loadd(6, query, kTileBytes);
    Kind::multiply_left();
    _tile_loadd(7, query + half_bytes, kTileBytes);
    Kind::multiply_right();
  }
}

// Sums of a block: [key 32][half of the queries].
template <class Kind>
__attribute__((always_inline)) inline void store(typename Kind::Vector* sums) {
  auto* bytes = reinterpret_cast<uint8_t*>(sums);
  constexpr int kRowBytes = 2 * kTileBytes;
  _tile_stored(0, bytes, kRowBytes);
  _tile_stored(1, bytes + kTileBytes, kRowBytes);
  _tile_stored(2, bytes + kHalf * kRowBytes, kRowBytes);
  _tile_stored(3, bytes + kHalf * kRowBytes + kTileBytes, kRowBytes);
}

template <class Kind>
__attribute__((always_inline)) inline void select(const typename Kind::Vector* sums, const KeyBlocks& keys,
                                                  int64_t block, const QueryPanel& panel, Hits* hits) {
  typename Kind::Vector best[4][2];
#pragma GCC unroll 4
  for (int part = 0; part < 4; ++part) {
    best[part][0] = best_of<Kind>(sums + part * 2 * kRows, 0);
    best[part][1] = best_of<Kind>(sums + part * 2 * kRows, 1);
  }
  const auto left = Kind::lowest(keys, block, panel, 0), right = Kind::lowest(keys, block, panel, 1);
  const auto top_left = Kind::larger(Kind::larger(best[0][0], best[1][0]), Kind::larger(best[2][0], best[3][0]));
  const auto top_right = Kind::larger(Kind::larger(best[0][1], best[1][1]), Kind::larger(best[2][1], best[3][1]));
  if (__builtin_expect(!(Kind::reaches(top_left, left) | Kind::reaches(top_right, right)), 1)) return;
  for (int part = 0; part < 4; ++part) {
    if (!(Kind::reaches(best[part][0], left) | Kind::reaches(best[part][1], right))) continue;
    collect<Kind>(sums + part * 2 * kRows, static_cast<int32_t>(block * kBlock + part * kRows), left, right, hits);
  }
}

template <class Kind>
int64_t scan(const KeyBlocks& keys, int64_t first, int64_t last, const QueryPanel& panel, Hits* hits) {
  const size_t half_bytes = static_cast<size_t>(keys.tiles_per_row) * kTile;
  alignas(64) typename Kind::Vector sums[2][2 * kBlock];
  int64_t block = first;
  for (; block < last && hits->count < kEnoughHits; ++block) {
    multiply<Kind>(keys, block, panel, half_bytes);
    if (block > first) select<Kind>(sums[(block - 1) % 2], keys, block - 1, panel, hits);
    store<Kind>(sums[block % 2]);
  }
  if (block > first) select<Kind>(sums[(block - 1) % 2], keys, block - 1, panel, hits);
  return block;
}

template <class Kind>
void peaks(const KeyBlocks& keys, int64_t first, int64_t last, const QueryPanel& panel, int64_t k, float* lowers) {
  const size_t half_bytes = static_cast<size_t>(keys.tiles_per_row) * kTile;
  alignas(64) typename Kind::Vector sums[2 * kBlock];
  for (int64_t block = first; block < last; ++block) {
    multiply<Kind>(keys, block, panel, half_bytes);
    store<Kind>(sums);
    for (int part = 0; part < 4; ++part) insert_best<Kind>(sums + part * 2 * kRows, keys, block, panel, k, lowers);
  }
}

}  // namespace
}  // namespace vokenray

#pragma GCC pop_options

namespace vokenray {
namespace {

#if defined(VOKENRAY_EMULATE_AMX)
constexpr const char* kName = "amx_emulated";
bool has_tiles() { return true; }
#else
constexpr const char* kName = "amx";

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

bool has_tiles() { return processor_has_amx() && system_permits_tiles(); }
#endif

}  // namespace

const Kernels* amx_kernels() {
  static const Kernels* vectors = avx512_kernels();
  static const bool usable = vectors && has_tiles();
  if (!usable) return nullptr;
  static const Kernels kernels = {
      kName, {scan<Int8>, peaks<Int8>}, {scan<Bf16>, peaks<Bf16>}, vectors->dot, begin, end};
  return &kernels;
}

}  // namespace vokenray

#else

namespace vokenray {
const Kernels* amx_kernels() { return nullptr; }
}  // namespace vokenray

#endif

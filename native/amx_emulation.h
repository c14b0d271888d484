// The tile instructions that kernels_amx.cpp uses, in plain C++, for machines without AMX: by Intel's Software
// Developer's Manual, volume 2, with what faults there as an exception. It also refuses what costs time on hardware:
// tiles in memory that straddle lines of the cache. Very slow; for tests only.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

namespace vokenray {
namespace {

class EmulatedTiles {
 public:
  void configure(const void* config) {
    const auto* bytes = static_cast<const uint8_t*>(config);
    require(bytes[0] == 1 && bytes[1] == 0, "palette 1 and start row 0");
    for (int i = 2; i < 64; ++i) require(!(i < 16 || (i >= 32 && i < 48) || i >= 56) || !bytes[i], "zeros in reserve");
    for (int tile = 0; tile < kTiles; ++tile) {
      uint16_t row_bytes;
      std::memcpy(&row_bytes, bytes + 16 + 2 * tile, 2);
      const uint8_t rows = bytes[48 + tile];
      const bool fits = row_bytes <= kRowBytes && rows <= kRows && (row_bytes == 0) == (rows == 0);
      require(fits, "a tile of 16 rows of 64 bytes at most");
      tiles_[tile] = {};
      tiles_[tile].rows = rows, tiles_[tile].row_bytes = row_bytes;
    }
    configured_ = true;
  }
  void release() { configured_ = false; }

  void zero(int tile) { std::memset(used(tile).data, 0, sizeof used(tile).data); }

  void load(int tile, const void* base, int64_t stride) {
    zero(tile);
    for (int row = 0; row < used(tile).rows; ++row) {
      std::memcpy(used(tile).data[row], at(base, stride, row), used(tile).row_bytes);
    }
  }
  void store(int tile, void* base, int64_t stride) {
    for (int row = 0; row < used(tile).rows; ++row) {
      std::memcpy(const_cast<uint8_t*>(at(base, stride, row)), used(tile).data[row], used(tile).row_bytes);
    }
  }

  // Sums of four products of an unsigned byte of `left` and a signed one of `right`, in int32.
  void multiply_bytes(int sums, int left, int right) {
    check_shapes(sums, left, right);
    for (int row = 0; row < used(sums).rows; ++row) {
      for (int group = 0; group < used(left).row_bytes / 4; ++group) {
        const uint8_t* a = used(left).data[row] + 4 * group;
        for (int column = 0; column < used(sums).row_bytes / 4; ++column) {
          const auto* b = reinterpret_cast<const int8_t*>(used(right).data[group] + 4 * column);
          int32_t sum;
          std::memcpy(&sum, used(sums).data[row] + 4 * column, 4);
          for (int i = 0; i < 4; ++i) sum += a[i] * b[i];
          std::memcpy(used(sums).data[row] + 4 * column, &sum, 4);
        }
      }
    }
  }

  // Even and odd products are added up apart, from zero, then to each other, then to the sum; subnormals count as zero.
  void multiply_bf16(int sums, int left, int right) {
    check_shapes(sums, left, right);
    for (int row = 0; row < used(sums).rows; ++row) {
      for (int column = 0; column < used(sums).row_bytes / 4; ++column) {
        float parts[2] = {0.0f, 0.0f};
        for (int group = 0; group < used(left).row_bytes / 4; ++group) {
          for (int i = 0; i < 2; ++i) {
            const float a = bf16_at(used(left).data[row] + 4 * group + 2 * i);
            const float b = bf16_at(used(right).data[group] + 4 * column + 2 * i);
            parts[i] = flushed(std::fma(a, b, parts[i]));
          }
        }
        float sum;
        std::memcpy(&sum, used(sums).data[row] + 4 * column, 4);
        sum = flushed(flushed(sum) + flushed(parts[0] + parts[1]));
        std::memcpy(used(sums).data[row] + 4 * column, &sum, 4);
      }
    }
  }

 private:
  static constexpr int kTiles = 8, kRows = 16, kRowBytes = 64;
  struct Tile {
    uint8_t data[kRows][kRowBytes];
    int rows, row_bytes;
  };

  static void require(bool holds, const char* what) {
    if (!holds) throw std::logic_error(std::string("AMX emulation: expected ") + what);
  }
  static const uint8_t* at(const void* base, int64_t stride, int row) {
    const auto* address = static_cast<const uint8_t*>(base) + stride * row;
    require(reinterpret_cast<uintptr_t>(address) % kRowBytes == 0, "rows that start a line of the cache");
    return address;
  }
  static float flushed(float value) { return std::fabs(value) < 0x1p-126f ? std::copysign(0.0f, value) : value; }
  static float bf16_at(const uint8_t* bytes) {
    uint16_t half;
    std::memcpy(&half, bytes, 2);
    const uint32_t bits = static_cast<uint32_t>(half) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return flushed(value);
  }
  Tile& used(int tile) {
    require(configured_ && tile >= 0 && tile < kTiles && tiles_[tile].rows, "a configured tile");
    return tiles_[tile];
  }
  void check_shapes(int sums, int left, int right) {
    require(sums != left && sums != right && left != right, "three different tiles");
    require(used(sums).rows == used(left).rows && used(sums).row_bytes == used(right).row_bytes &&
                used(left).row_bytes == 4 * used(right).rows,
            "tiles whose shapes fit");
  }

  Tile tiles_[kTiles] = {};
  bool configured_ = false;
};

EmulatedTiles& emulated_tiles() {
  static thread_local EmulatedTiles tiles;  // registers: each thread has its own
  return tiles;
}

}  // namespace
}  // namespace vokenray

#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stream_loadd
#undef _tile_stored
#undef _tile_dpbusd
#undef _tile_dpbf16ps
#define _tile_release() emulated_tiles().release()
#define _tile_zero(tile) emulated_tiles().zero(tile)
#define _tile_loadd(tile, base, stride) emulated_tiles().load(tile, base, stride)
#define _tile_stream_loadd(tile, base, stride) emulated_tiles().load(tile, base, stride)
#define _tile_stored(tile, base, stride) emulated_tiles().store(tile, base, stride)
#define _tile_dpbusd(sums, left, right) emulated_tiles().multiply_bytes(sums, left, right)
#define _tile_dpbf16ps(sums, left, right) emulated_tiles().multiply_bf16(sums, left, right)

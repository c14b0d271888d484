#include "bank.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

namespace vokenray {
namespace {

constexpr double kSlack = 1 + 1e-6;  // norms are summed in double: far more than its rounding for any width

double norm_of(const double* values, int64_t width) {
  double sum = 0;
  for (int64_t i = 0; i < width; ++i) sum += values[i] * values[i];
  return std::sqrt(sum) * kSlack;
}

// The scale and the centre, in one reading: a sum of 2^31 float32 numbers stays in double's range.
void find_centre(Bank* bank, const Rows& keys) {
  std::vector<double> sums(bank->width, 0.0);
  std::vector<float> scratch(bank->width);
  float largest = 0;
  for (int64_t row = 0; row < bank->count; ++row) {
    const float* key = keys.read(row, scratch.data());
    for (int64_t i = 0; i < bank->width; ++i) {
      sums[i] += key[i];
      largest = std::max(largest, std::fabs(key[i]));
    }
  }
  std::frexp(static_cast<double>(largest), &bank->exponent);
  const double factor = std::ldexp(1.0, -bank->exponent) / std::max<int64_t>(1, bank->count);
  for (int64_t i = 0; i < bank->width; ++i) bank->centre[i] = static_cast<float>(sums[i] * factor);
}

void centred(const Bank& bank, const float* key, double* values) {
  const double factor = std::ldexp(1.0, -bank.exponent);
  for (int64_t i = 0; i < bank.width; ++i) values[i] = key[i] * factor - bank.centre[i];
}

double largest_value(const double* values, int64_t width) {
  double largest = 0;
  for (int64_t i = 0; i < width; ++i) largest = std::max(largest, std::fabs(values[i]));
  return largest;
}

// Keys of like size share a block, so that one scale and one bound per block cost little.
std::vector<int32_t> order_by_size(Bank* bank, const Rows& keys) {
  std::vector<double> values(bank->width);
  std::vector<float> scratch(bank->width);
  std::vector<float> sizes(bank->count);
  const double factor = std::ldexp(1.0, -bank->exponent);
  for (int64_t row = 0; row < bank->count; ++row) {
    const float* key = keys.read(row, scratch.data());
    centred(*bank, key, values.data());
    sizes[row] = static_cast<float>(largest_value(values.data(), bank->width));
    bank->largest_centred = std::max(bank->largest_centred, norm_of(values.data(), bank->width));
    for (int64_t i = 0; i < bank->width; ++i) values[i] = key[i] * factor;
    bank->largest_scaled = std::max(bank->largest_scaled, norm_of(values.data(), bank->width));
  }
  std::vector<int32_t> order(bank->count);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return sizes[a] > sizes[b]; });
  return order;
}

struct RoundedNorms {
  double whole = 0, low = 0;
};

// Rounds one centred key into its place; `values` becomes what rounding lost.
RoundedNorms round_key(const Bank& bank, float scale, double* values, uint8_t* place) {
  const double inverse = 1 / static_cast<double>(scale);
  double squares = 0, low_squares = 0;
  const auto put_bf16 = [&](int64_t at, uint16_t bits) {
    std::memcpy(place + (at / 32) * kTile + 2 * (at % 32), &bits, 2);
  };
  for (int64_t i = 0; i < bank.width; ++i) {
    double rounded;
    if (bank.kind == Kind::int8) {
      const double step = std::clamp(to_whole(values[i] * inverse), -127.0, 127.0);
      place[(i / kTileBytes) * kTile + i % kTileBytes] = static_cast<uint8_t>(static_cast<int>(step) + 128);
      rounded = step * scale;
    } else {
      const uint16_t high = to_bf16(values[i]);
      put_bf16(i, high);
      rounded = bf16_value(high);
      if (bank.kind == Kind::split) {
        const uint16_t low = to_bf16(values[i] - rounded);
        put_bf16(i + bank.width, high);
        put_bf16(i + 2 * bank.width, low);
        rounded += bf16_value(low);
        low_squares += bf16_value(low) * bf16_value(low);
      }
    }
    squares += rounded * rounded;
    values[i] -= rounded;
  }
  return {std::sqrt(squares) * kSlack, std::sqrt(low_squares) * kSlack};
}

void pack_block(Bank* bank, const Rows& keys, int64_t block, std::vector<double>* scratch) {
  const int64_t width = bank->width;
  std::vector<float> decoded(width);
  double largest = 0, norm = 0, residual = 0;
  for (int place = 0; place < kBlock; ++place) {
    const int32_t row = bank->rows[block * kBlock + place];
    double* values = scratch->data() + place * width;
    if (row < 0) continue;
    centred(*bank, keys.read(row, decoded.data()), values);
    largest = std::max(largest, largest_value(values, width));
    norm = std::max(norm, norm_of(values, width));
  }
  float scale = 1.0f;
  if (bank->kind == Kind::int8) scale = std::max(static_cast<float>(largest / 127), 0x1p-60f);
  const size_t half_bytes = static_cast<size_t>(bank->tiles_per_row) * kTile;
  for (int place = 0; place < kBlock; ++place) {
    if (bank->rows[block * kBlock + place] < 0) continue;
    double* values = scratch->data() + place * width;
    uint8_t* where = bank->memory.get() + (2 * static_cast<size_t>(block) + place / kHalf) * half_bytes +
                     (place % kHalf) * kTileBytes;
    const RoundedNorms rounded = round_key(*bank, scale, values, where);
    bank->largest_rounded = std::max(bank->largest_rounded, rounded.whole);
    bank->largest_low = std::max(bank->largest_low, rounded.low);
    residual = std::max(residual, norm_of(values, width));
  }
  bank->scale[block] = scale;
  bank->inverse[block] = 1.0f / scale;
  bank->norm[block] = round_up(norm);
  bank->residual[block] = round_up(residual);
}

}  // namespace

uint16_t to_bf16(double value) {
  const float single = static_cast<float>(value);
  if (std::fabs(single) < 0x1p-126f) return 0;  // the instructions read subnormals as zero
  uint32_t bits;
  std::memcpy(&bits, &single, 4);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

double bf16_value(uint16_t half) {
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

float round_up(double value) {
  return std::nextafter(static_cast<float>(value), std::numeric_limits<float>::infinity());
}

void set_shape(Bank* bank) {
  const int64_t row_bytes = steps_of(bank->kind, bank->width) * (bank->kind == Kind::int8 ? 1 : 2);
  bank->blocks = (bank->count + kBlock - 1) / kBlock;
  bank->groups = static_cast<int>((row_bytes + 3) / 4);
  bank->tiles_per_row = static_cast<int>((row_bytes + kTileBytes - 1) / kTileBytes);
}

std::unique_ptr<Bank> pack(const Rows& keys, Kind kind) {
  const PlainArithmetic plain;
  auto bank = std::make_unique<Bank>();
  bank->kind = kind, bank->count = keys.count, bank->width = keys.width;
  set_shape(bank.get());
  bank->centre.assign(bank->width, 0.0f);
  bank->largest_scaled = bank->largest_centred = bank->largest_rounded = bank->largest_low = 0;
  find_centre(bank.get(), keys);
  bank->rows = order_by_size(bank.get(), keys);
  bank->rows.resize(bank->blocks * kBlock, -1);
  for (auto* column : {&bank->scale, &bank->inverse, &bank->norm, &bank->residual}) column->assign(bank->blocks, 0.0f);
  bank->memory = allocate_tiles(bank->tile_bytes());
  bank->tiles = bank->memory.get();
  std::memset(bank->memory.get(), kind == Kind::int8 ? 128 : 0, bank->tile_bytes());
  std::vector<double> scratch(kBlock * bank->width);
  for (int64_t block = 0; block < bank->blocks; ++block) pack_block(bank.get(), keys, block, &scratch);
  double centre = 0;
  for (float value : bank->centre) centre += static_cast<double>(value) * value;
  bank->centre_norm = std::sqrt(centre) * kSlack;
  bank->largest_norm = std::ldexp(bank->largest_scaled, bank->exponent);
  return bank;
}

}  // namespace vokenray

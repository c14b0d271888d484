#include "query.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace vokenray {
namespace {

constexpr double kSlack = 1 + 1e-6;
constexpr double kHalfUlp = 0x1p-24;           // rounding of one float32 operation
constexpr double kBookkeeping = 0x1p-18;       // of a score: float32 arithmetic on scores, bounds and thresholds
constexpr double kLeastFloat = 0x1p-149;


}  // namespace

Panel::Panel(const Bank& bank) {
  const size_t bytes = 2 * static_cast<size_t>(bank.tiles_per_row) * kTile;
  memory_.resize(bytes + kTileBytes);
  tiles = memory_.data() + (kTileBytes - reinterpret_cast<uintptr_t>(memory_.data()) % kTileBytes);
}

void Panel::fill(const Bank& bank, const float* rows, int64_t count) {
  std::memset(tiles, 0, 2 * static_cast<size_t>(bank.tiles_per_row) * kTile);
  for (int place = 0; place < kBlock; ++place) {
    queries[place] = Query();
    start[place] = 0;
    threshold[place] = kNever;
    by_norm[place] = by_residual[place] = constant[place] = 0.0f;
    if (place < count) round_query(bank, place, rows + place * bank.width);
  }
}

void Panel::round_query(const Bank& bank, int place, const float* row) {
  Query& query = queries[place];
  float largest = 0;
  for (int64_t i = 0; i < bank.width; ++i) largest = std::max(largest, std::fabs(row[i]));
  query.is_zero = largest == 0.0f || bank.largest_scaled == 0.0;
  if (query.is_zero) return;
  int exponent = 0;
  std::frexp(static_cast<double>(largest), &exponent);
  const double factor = std::ldexp(1.0, -exponent);
  const bool is_int8 = bank.kind == Kind::int8;
  const double step = is_int8 ? static_cast<float>(largest * factor / 127) : 1.0;
  uint8_t* column = tiles + (place / kHalf) * static_cast<size_t>(bank.tiles_per_row) * kTile + (place % kHalf) * 4;
  double squares = 0, rounded_squares = 0, lost_squares = 0, centre = 0;
  int32_t sum = 0;
  for (int64_t i = 0; i < bank.width; ++i) {
    const double value = row[i] * factor;
    squares += value * value;
    centre += value * bank.centre[i];
    const int64_t byte = i * (is_int8 ? 1 : 2);
    uint8_t* where = column + (byte / kTileBytes) * kTile + (byte % kTileBytes) / 4 * kTileBytes + byte % 4;
    double rounded;
    if (is_int8) {
      const int whole = static_cast<int>(std::clamp(std::nearbyint(value / step), -127.0, 127.0));
      *where = static_cast<uint8_t>(static_cast<int8_t>(whole));
      sum += whole;
      rounded = whole * step;
    } else {
      const uint16_t bits = to_bf16(value);
      std::memcpy(where, &bits, 2);
      rounded = bf16_value(bits);
    }
    rounded_squares += rounded * rounded;
    lost_squares += (value - rounded) * (value - rounded);
  }
  const double norm = std::sqrt(squares) * kSlack, lost = std::sqrt(lost_squares) * kSlack;
  const double rounded_norm = std::sqrt(rounded_squares) * kSlack;
  const double reach = norm * (bank.largest_scaled + bank.largest_centred + bank.centre_norm);
  double fixed = kBookkeeping * reach;
  if (!is_int8) {
    const double steps = static_cast<double>(bank.width) + 4;
    fixed += 2 * steps * kHalfUlp * rounded_norm * bank.largest_rounded + steps * 0x1p-124;
  }
  start[place] = -128 * sum;
  threshold[place] = -std::numeric_limits<float>::infinity();
  by_norm[place] = round_up(lost / step * kSlack);
  by_residual[place] = round_up(rounded_norm / step * kSlack);
  constant[place] = round_up(fixed / step * kSlack);
  query.norm = std::ldexp(norm, exponent);
  query.unit = std::ldexp(step, exponent + bank.exponent);
  query.centre = centre / step;
  query.margin = 2 * kHalfUlp * norm * bank.largest_scaled / step + kLeastFloat / query.unit;
  const double largest_score = query.norm * bank.largest_norm;
  query.needs_every_key = largest_score > 0x1p126 || kLeastFloat / query.unit > norm * bank.largest_scaled / step;
  if (query.needs_every_key) threshold[place] = kNever;
}

}  // namespace vokenray

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

Panel::Panel(const Bank& bank) : memory_(allocate_tiles(2 * static_cast<size_t>(bank.tiles_per_row) * kTile)) {
  tiles = memory_.get();
}

void Panel::fill(const Bank& bank, const float* rows, int64_t count) {
  std::memset(tiles, 0, 2 * static_cast<size_t>(bank.tiles_per_row) * kTile);
  for (int place = 0; place < kBlock; ++place) {
    queries[place] = Query();
    start[place] = 0;
    threshold[place] = kNever;
    by_norm[place] = by_residual[place] = constant[place] = margin[place] = 0.0f;
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
  const double step = bank.kind == Kind::int8 ? static_cast<float>(largest * factor / 127) : 1.0;
  const Rounded rounded = lay_out(bank, place, row, factor, step);
  const double norm = rounded.norm * kSlack;
  start[place] = -128 * rounded.sum;
  threshold[place] = -std::numeric_limits<float>::infinity();
  set_bounds(bank, place, rounded, step);
  query.norm = std::ldexp(norm, exponent);
  query.unit = std::ldexp(step, exponent + bank.exponent);
  query.centre = rounded.centre / step;
  query.margin = 2 * kHalfUlp * norm * bank.largest_scaled / step + kLeastFloat / query.unit;
  margin[place] = round_up(query.margin);
  const double largest_score = query.norm * bank.largest_norm;
  query.needs_every_key = largest_score > 0x1p126 || kLeastFloat / query.unit > norm * bank.largest_scaled / step;
  if (query.needs_every_key) threshold[place] = kNever;
}

Panel::Rounded Panel::lay_out(const Bank& bank, int place, const float* row, double factor, double step) {
  uint8_t* column = tiles + (place / kHalf) * static_cast<size_t>(bank.tiles_per_row) * kTile + (place % kHalf) * 4;
  const auto byte_at = [&](int64_t byte) {
    return column + (byte / kTileBytes) * kTile + (byte % kTileBytes) / 4 * kTileBytes + byte % 4;
  };
  const auto put_bf16 = [&](int64_t at, uint16_t bits) { std::memcpy(byte_at(2 * at), &bits, 2); };
  const double inverse = 1 / step;
  double squares = 0, rounded_squares = 0, lost_squares = 0, low_squares = 0, centre = 0;
  int32_t sum = 0;
  for (int64_t i = 0; i < bank.width; ++i) {
    const double value = row[i] * factor;
    squares += value * value;
    centre += value * bank.centre[i];
    double rounded;
    if (bank.kind == Kind::int8) {
      const int whole = static_cast<int>(std::clamp(to_whole(value * inverse), -127.0, 127.0));
      *byte_at(i) = static_cast<uint8_t>(static_cast<int8_t>(whole));
      sum += whole;
      rounded = whole * step;
    } else {
      const uint16_t high = to_bf16(value);
      put_bf16(i, high);
      rounded = bf16_value(high);
      if (bank.kind == Kind::split) {
        const uint16_t low = to_bf16(value - rounded);
        put_bf16(i + bank.width, low);
        put_bf16(i + 2 * bank.width, high);
        rounded += bf16_value(low);
        low_squares += bf16_value(low) * bf16_value(low);
      }
    }
    rounded_squares += rounded * rounded;
    lost_squares += (value - rounded) * (value - rounded);
  }
  return {std::sqrt(squares), std::sqrt(rounded_squares), std::sqrt(lost_squares), std::sqrt(low_squares), centre, sum};
}

// docs/search.md, section 2, in units of a step.
void Panel::set_bounds(const Bank& bank, int place, const Rounded& rounded, double step) {
  const double reach = rounded.norm * kSlack * (bank.largest_scaled + bank.largest_centred + bank.centre_norm);
  const double whole = rounded.whole * kSlack, low = rounded.low * kSlack;
  double fixed = kBookkeeping * reach;
  if (bank.kind != Kind::int8) {
    const double steps = static_cast<double>(steps_of(bank.kind, bank.width)) + 4;
    const double absolute = (whole + 2 * low) * (bank.largest_rounded + 2 * bank.largest_low);
    fixed += 2 * steps * kHalfUlp * absolute + steps * 0x1p-124 + low * bank.largest_low;
  }
  by_norm[place] = round_up(rounded.lost * kSlack / step * kSlack);
  by_residual[place] = round_up(whole / step * kSlack);
  constant[place] = round_up(fixed / step * kSlack);
}

}  // namespace vokenray

// One panel of 32 queries, rounded and laid out for a scan, with all that its bounds need.
#pragma once

#include <cstdint>

#include "bank.h"

namespace vokenray {

// A query is scaled by a power of two; approximate scores of query q count in units of its int8 step.
struct Query {
  double norm = 0;        // of the query as it came, rounded up
  double unit = 1;        // inner product of query and key = (approximate score + centre) * unit
  double centre = 0;      // in units
  double margin = 0;      // scores that differ by more, in units, differ after rounding to float32
  bool is_zero = true;
  bool needs_every_key = false;  // the bounds are void: sums may overflow float32, or all round to the same few values
};

struct Panel {
  explicit Panel(const Bank& bank);
  // Takes up to 32 queries (rows, width).
  void fill(const Bank& bank, const float* rows, int64_t count);
  QueryPanel view() const { return {tiles, start, threshold, by_norm, by_residual, constant}; }

  Query queries[kBlock];
  alignas(64) int32_t start[kBlock];
  alignas(64) float threshold[kBlock], by_norm[kBlock], by_residual[kBlock], constant[kBlock];
  float margin[kBlock];  // scores that differ by more, in units, differ after rounding to float32
  uint8_t* tiles;  // inside memory_

 private:
  struct Rounded {
    double norm, whole, lost, low;  // norms: of the query, of it rounded, of what that lost, of its low part
    double centre;                  // its product with the bank's centre
    int32_t sum;                    // of its int8 values
  };
  void round_query(const Bank& bank, int place, const float* row);
  Rounded lay_out(const Bank& bank, int place, const float* row, double factor, double step);
  void set_bounds(const Bank& bank, int place, const Rounded& rounded, double step);
  TileMemory memory_;
};

}  // namespace vokenray

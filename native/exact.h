// Inner products of float32 vectors, correctly rounded to float32.
#pragma once

#include <cstdint>

namespace vokenray {

// The exact inner product rounded once, half to even: every product is added to a fixed-point number of 640 bits.
float exact_product(const float* left, const float* right, int64_t width);

// The exact inner product, rounded, given a double-precision sum of it that is off by at most `error`. Counts into
// `exact_sums` when the sum alone does not settle the rounding.
float rounded_product(double sum, double error, const float* left, const float* right, int64_t width,
                      int64_t* exact_sums);

}  // namespace vokenray

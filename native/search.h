// Certified search: a scan in low precision finds candidates, double precision decides.
#pragma once

#include <cstdint>

#include "bank.h"

namespace vokenray {

struct Counts {
  int64_t candidates = 0;  // pairs that the bound could not exclude when the scan ended
  int64_t rescored = 0;    // of these, pairs scored in double precision
  int64_t exact_sums = 0;  // pairs whose double-precision sum did not settle the rounding
  int64_t fallbacks = 0;   // queries scored against every key
};

// The k best rows of `keys` for each query, best first, equal scores by lowest row; k <= count.
// `bank` was packed from the same keys. Results do not depend on kernels or threads. Throws std::bad_alloc.
Counts search(const Bank& bank, const Rows& keys, const float* queries, int64_t query_count, int64_t k, int threads,
              const Kernels& kernels, float* scores, int64_t* ids);

}  // namespace vokenray

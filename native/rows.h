// Rows of float32, float16 or bfloat16 as they lie in memory, read one at a time as float32, which is exact.
#pragma once

#include <cstdint>

namespace vokenray {

enum class Number { float32, float16, bfloat16 };

struct Rows {
  const void* data;  // (count, width), C-contiguous, aligned to the number
  Number number;
  int64_t count, width;

  int64_t row_bytes() const { return width * (number == Number::float32 ? 4 : 2); }
  const char* at(int64_t row) const { return static_cast<const char*>(data) + row * row_bytes(); }

  // A row as float32: where it lies, or decoded into `scratch`, which has room for `width` numbers.
  const float* read(int64_t row, float* scratch) const;
};

}  // namespace vokenray

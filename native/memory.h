// Memory for packed keys and queries, and the state of the processor's arithmetic.
#pragma once

#include <cfenv>
#include <cstddef>
#include <cstdint>
#include <memory>

namespace vokenray {

struct FreeTiles {
  size_t alignment = 0;
  void operator()(uint8_t* tiles) const;
};
using TileMemory = std::unique_ptr<uint8_t[], FreeTiles>;

// Bytes at a multiple of 64; large ones in huge pages where the system has them. Throws std::bad_alloc.
TileMemory allocate_tiles(size_t bytes);

// Rounding to nearest, subnormals kept: the proofs need both, and a caller may have set either otherwise.
class PlainArithmetic {
 public:
  PlainArithmetic() {
    std::fegetenv(&before_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~PlainArithmetic() { std::fesetenv(&before_); }
  PlainArithmetic(const PlainArithmetic&) = delete;
  PlainArithmetic& operator=(const PlainArithmetic&) = delete;

 private:
  std::fenv_t before_;
};

}  // namespace vokenray

#include "memory.h"

#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace vokenray {
namespace {

constexpr size_t kLine = 64;
constexpr size_t kHugePage = 2 << 20;

}  // namespace

void FreeTiles::operator()(uint8_t* tiles) const { ::operator delete(tiles, std::align_val_t(alignment)); }

TileMemory allocate_tiles(size_t bytes) {
  const size_t alignment = bytes >= 2 * kHugePage ? kHugePage : kLine;
  auto* tiles = static_cast<uint8_t*>(::operator new(bytes, std::align_val_t(alignment)));
#if defined(__linux__)
  if (alignment == kHugePage) madvise(tiles, bytes, MADV_HUGEPAGE);  // a wish: without it, small pages do
#endif
  return TileMemory(tiles, FreeTiles{alignment});
}

}  // namespace vokenray

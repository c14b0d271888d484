// A bank's header: fixed numbers, then the centre, the rows and four columns of blocks, as they lie in memory.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>

#include "bank.h"

namespace vokenray {
namespace {

constexpr char kMagic[8] = {'v', 'o', 'k', 'e', 'n', 'r', 'a', 'y'};
constexpr uint32_t kByteOrder = 0x01020304;
constexpr uint32_t kVersion = 1;  // of the header and of the tiles it describes: raise it when either changes

struct Fixed {
  char magic[8];
  uint32_t byte_order, version;
  int32_t kind, exponent;
  int64_t count, width;
  double largest_norm, largest_scaled, largest_centred, largest_rounded, largest_low, centre_norm;
};

[[noreturn]] void refuse(const std::string& why) { throw std::invalid_argument("the header of the bank " + why); }

template <class Item>
void append(std::string* header, const std::vector<Item>& items) {
  header->append(reinterpret_cast<const char*>(items.data()), items.size() * sizeof(Item));
}

class Reader {
 public:
  explicit Reader(const std::string& header) : header_(header) {}

  void take(void* where, size_t bytes) {
    if (bytes > header_.size() - at_) refuse("is too short");
    std::memcpy(where, header_.data() + at_, bytes);
    at_ += bytes;
  }
  template <class Item>
  std::vector<Item> items(int64_t count) {
    if (static_cast<uint64_t>(count) > (header_.size() - at_) / sizeof(Item)) refuse("is too short");
    std::vector<Item> found(static_cast<size_t>(count));
    take(found.data(), found.size() * sizeof(Item));
    return found;
  }
  bool at_end() const { return at_ == header_.size(); }

 private:
  const std::string& header_;
  size_t at_ = 0;
};

void check_fixed(const Fixed& fixed) {
  if (std::memcmp(fixed.magic, kMagic, sizeof kMagic) != 0) refuse("is of another kind of file");
  if (fixed.byte_order != kByteOrder) refuse("was written by a machine of another byte order");
  if (fixed.version != kVersion) refuse("is of another version of the layout");
  const auto known = [&](Kind kind) { return fixed.kind == static_cast<int32_t>(kind); };
  if (std::none_of(std::begin(kKinds), std::end(kKinds), known)) refuse("names an unknown kind");
  if (fixed.count < 1 || fixed.count > kMostKeys) refuse("has an impossible number of keys");
  if (fixed.width < 1 || fixed.width > widest(static_cast<Kind>(fixed.kind))) refuse("has an impossible width");
  if (std::abs(fixed.exponent) > 200) refuse("has an impossible exponent");
}

void check_numbers(const Bank& bank) {
  for (double number : {bank.largest_norm, bank.largest_scaled, bank.largest_centred, bank.largest_rounded,
                        bank.largest_low, bank.centre_norm}) {
    if (!std::isfinite(number) || number < 0) refuse("has a norm that is none");
  }
  for (float number : bank.centre) {
    if (!std::isfinite(number)) refuse("has a centre that is not finite");
  }
  for (const auto* column : {&bank.scale, &bank.inverse, &bank.norm, &bank.residual}) {
    for (float number : *column) {
      if (!std::isfinite(number) || number < 0) refuse("has a block whose numbers are not finite");
    }
  }
}

// Every row once, and what fills up the last block behind them.
void check_rows(const Bank& bank) {
  std::vector<bool> seen(static_cast<size_t>(bank.count));
  for (int64_t place = 0; place < bank.blocks * kBlock; ++place) {
    const int32_t row = bank.rows[place];
    const bool is_fill = place >= bank.count;
    if (is_fill ? row != -1 : row < 0 || row >= bank.count || seen[row]) refuse("does not name every row once");
    if (!is_fill) seen[row] = true;
  }
}

}  // namespace

std::string write_header(const Bank& bank) {
  Fixed fixed = {};
  std::memcpy(fixed.magic, kMagic, sizeof kMagic);
  fixed.byte_order = kByteOrder, fixed.version = kVersion;
  fixed.kind = static_cast<int32_t>(bank.kind), fixed.exponent = bank.exponent;
  fixed.count = bank.count, fixed.width = bank.width;
  fixed.largest_norm = bank.largest_norm, fixed.largest_scaled = bank.largest_scaled;
  fixed.largest_centred = bank.largest_centred, fixed.largest_rounded = bank.largest_rounded;
  fixed.largest_low = bank.largest_low, fixed.centre_norm = bank.centre_norm;
  std::string header(reinterpret_cast<const char*>(&fixed), sizeof fixed);
  append(&header, bank.centre);
  append(&header, bank.rows);
  for (const auto* column : {&bank.scale, &bank.inverse, &bank.norm, &bank.residual}) append(&header, *column);
  return header;
}

std::unique_ptr<Bank> restore(const std::string& header, const uint8_t* tiles, size_t tile_bytes) {
  Reader reader(header);
  Fixed fixed;
  reader.take(&fixed, sizeof fixed);
  check_fixed(fixed);
  auto bank = std::make_unique<Bank>();
  bank->kind = static_cast<Kind>(fixed.kind), bank->exponent = fixed.exponent;
  bank->count = fixed.count, bank->width = fixed.width;
  bank->largest_norm = fixed.largest_norm, bank->largest_scaled = fixed.largest_scaled;
  bank->largest_centred = fixed.largest_centred, bank->largest_rounded = fixed.largest_rounded;
  bank->largest_low = fixed.largest_low, bank->centre_norm = fixed.centre_norm;
  set_shape(bank.get());
  bank->centre = reader.items<float>(bank->width);
  bank->rows = reader.items<int32_t>(bank->blocks * kBlock);
  for (auto* column : {&bank->scale, &bank->inverse, &bank->norm, &bank->residual}) {
    *column = reader.items<float>(bank->blocks);
  }
  if (!reader.at_end()) refuse("is too long");
  check_numbers(*bank);
  check_rows(*bank);
  if (tile_bytes != bank->tile_bytes()) throw std::invalid_argument("the tiles are of another size than the bank's");
  if (reinterpret_cast<uintptr_t>(tiles) % kTileBytes) throw std::invalid_argument("the tiles are not aligned to 64");
  bank->tiles = tiles;
  return bank;
}

}  // namespace vokenray

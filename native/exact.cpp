#include "exact.h"

#include <cmath>
#include <cstring>

namespace vokenray {
namespace {

constexpr int kDigits = 20;          // of 32 bits; the least bit is 2^-298, products end below 2^256, sums below 2^288
constexpr int kLeastExponent = -298;  // two least subnormals: 2^-149 * 2^-149
constexpr int kLeastFloatBit = 149;   // place of 2^-149

struct Parts {
  int64_t mantissa;
  int exponent;  // value = mantissa * 2^(exponent - 150)
};

Parts parts_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const int field = static_cast<int>((bits >> 23) & 255);
  int64_t mantissa = bits & 0x7fffff;
  if (field) mantissa |= 0x800000;
  return {bits >> 31 ? -mantissa : mantissa, field ? field : 1};
}

void carry(int64_t (&digits)[kDigits]) {
  for (int i = 0; i + 1 < kDigits; ++i) {
    digits[i + 1] += digits[i] >> 32;
    digits[i] &= 0xffffffff;
  }
}

bool bit_at(const int64_t (&digits)[kDigits], int place) {
  return place >= 0 && ((digits[place / 32] >> (place % 32)) & 1);
}

float round_digits(const int64_t (&digits)[kDigits]) {
  int top = kDigits * 32 - 1;
  while (top >= 0 && !bit_at(digits, top)) --top;
  if (top < 0) return 0.0f;
  const int least = top - 23 > kLeastFloatBit ? top - 23 : kLeastFloatBit;
  int64_t mantissa = 0;
  for (int place = top; place >= least; --place) mantissa = 2 * mantissa + bit_at(digits, place);
  bool rest = false;
  for (int place = 0; place < least - 1 && !rest; ++place) rest = bit_at(digits, place);
  if (bit_at(digits, least - 1) && (rest || (mantissa & 1))) ++mantissa;
  return static_cast<float>(std::ldexp(static_cast<double>(mantissa), least + kLeastExponent));
}

}  // namespace

float exact_product(const float* left, const float* right, int64_t width) {
  int64_t digits[kDigits] = {};
  for (int64_t i = 0; i < width; ++i) {
    const Parts a = parts_of(left[i]), b = parts_of(right[i]);
    const int64_t product = a.mantissa * b.mantissa;
    if (!product) continue;
    const int shift = a.exponent + b.exponent - 2, digit = shift / 32;
    unsigned __int128 wide = static_cast<unsigned __int128>(product < 0 ? -product : product) << (shift % 32);
    for (int j = 0; j < 3; ++j, wide >>= 32) {
      const int64_t part = static_cast<int64_t>(wide & 0xffffffff);
      digits[digit + j] += product < 0 ? -part : part;
    }
    if ((i & 0x3fffffff) == 0x3fffffff) carry(digits);  // each step adds below 2^32 to a digit
  }
  carry(digits);
  if (digits[kDigits - 1] >= 0) return round_digits(digits);
  for (int64_t& digit : digits) digit = -digit;
  carry(digits);
  return -round_digits(digits);
}

float rounded_product(double sum, double error, const float* left, const float* right, int64_t width,
                      int64_t* exact_sums) {
  const float low = static_cast<float>(sum - error), high = static_cast<float>(sum + error);
  if (low == high) return low + 0.0f;  // never -0
  ++*exact_sums;
  return exact_product(left, right, width) + 0.0f;
}

}  // namespace vokenray

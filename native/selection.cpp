#include "selection.h"

#include <algorithm>
#include <functional>
#include <limits>

#include "kernels.h"

namespace vokenray {
namespace {

constexpr size_t kFirstRoom = 64;            // candidates before the first are dropped, beside 2 k
constexpr size_t kMostCandidates = 1 << 16;  // beside 4 k; beyond, the query is scored against every key
constexpr size_t kFew = 32;                  // up to so many bounds are moved without a branch

}  // namespace

void Selection::begin(int64_t k, float margin) {
  lowers_.assign(static_cast<size_t>(k), -std::numeric_limits<float>::infinity());
  candidates_.resize(kFirstRoom + 2 * static_cast<size_t>(k));
  count_ = 0, margin_ = margin, overflowed_ = false;
}

void Selection::note(Candidate candidate, float lower, float* threshold) {
  candidates_[count_] = candidate;
  count_ += candidate.upper >= *threshold;
  insert(lower);
  *threshold = std::max(*threshold, lowers_.back() - margin_);
  if (count_ == candidates_.size()) make_room(threshold);
}

void Selection::insert(float lower) {
  float* lowers = lowers_.data();
  const size_t k = lowers_.size();
  if (k <= kFew) {
    for (size_t i = k - 1; i > 0; --i) lowers[i] = std::max(lowers[i], std::min(lowers[i - 1], lower));
    lowers[0] = std::max(lowers[0], lower);
  } else if (lower > lowers[k - 1]) {
    float* place = std::upper_bound(lowers, lowers + k, lower, std::greater<float>());
    std::copy_backward(place, lowers + k - 1, lowers + k);
    *place = lower;
  }
}

void Selection::make_room(float* threshold) {
  drop_below(*threshold);
  if (count_ <= candidates_.size() / 2) return;
  const size_t most = kMostCandidates + 4 * lowers_.size();
  if (candidates_.size() < most) {
    candidates_.resize(std::min(2 * candidates_.size(), most));
    return;
  }
  overflowed_ = true;
  *threshold = kNever;
  count_ = 0;
}

void Selection::drop_below(float threshold) {
  const auto end = candidates_.begin() + static_cast<std::ptrdiff_t>(count_);
  const auto kept = std::remove_if(candidates_.begin(), end, [=](const Candidate& c) { return c.upper < threshold; });
  count_ = static_cast<size_t>(kept - candidates_.begin());
}

std::vector<Candidate>& Selection::remaining(float threshold) {
  drop_below(threshold);
  candidates_.resize(count_);
  return candidates_;
}

}  // namespace vokenray

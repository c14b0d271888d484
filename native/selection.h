// What one query keeps while the keys go by: candidates, and the k largest lower bounds of scores.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace vokenray {

struct Candidate {
  int32_t row;
  float upper;  // no smaller than the centred inner product, in units of the query
  bool operator<(const Candidate& other) const { return upper < other.upper; }
};

class Selection {
 public:
  // Starts anew for a query whose scores stay apart, when rounded, if they differ by `margin`.
  void begin(int64_t k, float margin);

  // Notes a pair whose score lies between the bounds. Raises `threshold`, below which a score is of no use; sets it to
  // kNever when there are more candidates than room.
  void note(Candidate candidate, float lower, float* threshold);

  // The candidates that reach the threshold, in no order.
  std::vector<Candidate>& remaining(float threshold);

  bool overflowed() const { return overflowed_; }

 private:
  void insert(float lower);
  void make_room(float* threshold);
  void drop_below(float threshold);

  std::vector<Candidate> candidates_;  // the first count_ of them
  std::vector<float> lowers_;          // k, largest first; -inf until there are so many
  size_t count_ = 0;
  float margin_ = 0;
  bool overflowed_ = false;
};

}  // namespace vokenray

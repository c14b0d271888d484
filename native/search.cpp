#include "search.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <exception>
#include <limits>
#include <stdexcept>
#include <thread>
#include <vector>

#include "exact.h"
#include "query.h"
#include "selection.h"

namespace vokenray {
namespace {

constexpr int64_t kPanelsAtOnce = 32;        // panels of queries that share a pass over the keys
constexpr int64_t kKeyBytes = 384 << 10;     // of keys scanned for panel after panel, from the second-level cache
constexpr int64_t kMostSampled = 32;         // results per query up to which a sample of the keys sets thresholds
constexpr int64_t kAhead = 3;                // candidates whose rows are fetched before they are scored

struct Best {
  float score;
  int64_t row;
  bool before(const Best& other) const { return score > other.score || (score == other.score && row < other.row); }
};

struct Task {
  const Bank& bank;
  const Rows& keys;
  const float* queries;
  int64_t query_count, k;
  const Kernels& kernels;
  Scans scans;
  float* scores;
  int64_t* ids;
};

class Worker {
 public:
  Worker(const Task& task, int64_t panels)
      : task_(task), selections_(std::min(panels, kPanelsAtOnce) * kBlock), decoded_(task.bank.width) {
    for (int64_t i = 0; i < std::min(panels, kPanelsAtOnce); ++i) panels_.emplace_back(task.bank);
  }

  // Answers the queries of panels first..last-1.
  void run(int64_t first, int64_t last) {
    const PlainArithmetic plain;
    for (int64_t panel = first; panel < last; panel += kPanelsAtOnce) {
      const int64_t count = std::min(kPanelsAtOnce, last - panel);
      prepare(panel, count);
      task_.kernels.begin();
      set_thresholds(count);
      scan(count);
      task_.kernels.end();
      for (int64_t query = panel * kBlock; query < std::min((panel + count) * kBlock, task_.query_count); ++query) {
        finish(query, query - panel * kBlock);
      }
    }
  }

  Counts counts;

 private:
  void prepare(int64_t first, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      const int64_t query = (first + i) * kBlock;
      panels_[i].fill(task_.bank, task_.queries + query * task_.bank.width,
                      std::min<int64_t>(kBlock, task_.query_count - query));
    }
    for (int64_t i = 0; i < count * kBlock; ++i) {
      selections_[i].begin(task_.k, panels_[i / kBlock].margin[i % kBlock]);
    }
  }

  // Blocks whose peaks give thresholds to begin with, so that the first keys are not all candidates: one for each
  // result at least, with a peak or more in each, or there is no k-th. None where that is a large part of the bank.
  int64_t sampled_blocks() const {
    const int64_t full = task_.bank.count / kBlock;
    const int64_t blocks = std::max(full * std::min<int64_t>(task_.k, 8) / 128, task_.k);
    return task_.k <= kMostSampled && blocks <= full / 4 ? blocks : 0;
  }

  void set_thresholds(int64_t count) {
    const int64_t blocks = sampled_blocks();
    if (!blocks) return;
    const KeyBlocks keys = task_.bank.view();
    for (int64_t i = 0; i < count; ++i) {
      lowers_.assign(task_.k * kBlock, -kNever);
      task_.scans.peaks(keys, 0, blocks, panels_[i].view(), task_.k, lowers_.data());
      const float* kth = lowers_.data() + (task_.k - 1) * kBlock;
      for (int query = 0; query < kBlock; ++query) {
        float& threshold = panels_[i].threshold[query];
        threshold = std::max(threshold, kth[query] - panels_[i].margin[query]);
      }
    }
  }

  void scan(int64_t count) {
    const KeyBlocks keys = task_.bank.view();
    const int64_t block_bytes = static_cast<int64_t>(keys.tiles_per_row) * 2 * kTile;
    const int64_t step = std::max<int64_t>(1, kKeyBytes / block_bytes);
    for (int64_t from = 0; from < task_.bank.blocks; from += step) {
      const int64_t to = std::min(from + step, task_.bank.blocks);
      for (int64_t i = 0; i < count; ++i) {
        const QueryPanel view = panels_[i].view();
        for (int64_t block = from; block < to;) {
          block = task_.scans.scan(keys, block, to, view, &hits_);
          take(&panels_[i], selections_.data() + i * kBlock);
        }
      }
    }
  }

  // Notes every pair that a scan found, and raises the thresholds.
  void take(Panel* panel, Selection* selections) {
    const Bank& bank = task_.bank;
    for (int64_t i = 0; i < hits_.count; ++i) {
      const int query = hits_.queries[i];
      const int64_t block = hits_.places[i] / kBlock;
      const int32_t row = bank.rows[hits_.places[i]];
      if (row < 0) continue;
      float sum;
      if (bank.kind == Kind::int8) {
        sum = static_cast<float>(hits_.sums[i] + panel->start[query]);
      } else {
        std::memcpy(&sum, &hits_.sums[i], 4);
      }
      const float bound = panel->by_norm[query] * bank.norm[block] + panel->by_residual[query] * bank.residual[block] +
                          panel->constant[query];
      const float score = sum * bank.scale[block];
      selections[query].note({row, score + bound}, score - bound, &panel->threshold[query]);
    }
    hits_.count = 0;
  }

  void finish(int64_t query, int64_t slot) {
    Panel& panel = panels_[slot / kBlock];
    const int place = static_cast<int>(slot % kBlock);
    const Query& about = panel.queries[place];
    best_.clear();
    if (about.is_zero) {
      for (int64_t row = 0; row < task_.k; ++row) best_.push_back({0.0f, row});
    } else if (about.needs_every_key || selections_[slot].overflowed()) {
      ++counts.fallbacks;
      for (int64_t row = 0; row < task_.bank.count; ++row) score_row(query, about, row);
    } else {
      decide(query, about, &selections_[slot].remaining(panel.threshold[place]));
    }
    if (static_cast<int64_t>(best_.size()) < task_.k) throw std::logic_error("the bank does not fit its keys");
    for (int64_t i = 0; i < task_.k; ++i) {
      task_.scores[query * task_.k + i] = best_[i].score;
      task_.ids[query * task_.k + i] = best_[i].row;
    }
  }

  // Scores the candidates from the highest upper bound down, until none can reach the k-th best.
  void decide(int64_t query, const Query& about, std::vector<Candidate>* candidates) {
    auto& heap = *candidates;
    counts.candidates += static_cast<int64_t>(heap.size());
    std::make_heap(heap.begin(), heap.end());
    const int64_t total = static_cast<int64_t>(heap.size());
    int64_t popped = 0;
    for (int64_t i = 0; i < total; ++i) {
      for (; popped < std::min(total, i + kAhead); ++popped) {
        std::pop_heap(heap.begin(), heap.end() - popped);
        fetch(heap[total - 1 - popped].row);
      }
      const Candidate candidate = heap[total - 1 - i];
      if (static_cast<int64_t>(best_.size()) == task_.k) {
        const double reached = best_.back().score / about.unit - about.centre - about.margin;
        if (candidate.upper < reached) break;
      }
      ++counts.rescored;
      score_row(query, about, candidate.row);
    }
  }

  void fetch(int64_t row) const {
    const char* bytes = task_.keys.at(row);
    const int64_t end = std::min<int64_t>(task_.keys.row_bytes(), 4096);
    for (int64_t at = 0; at < end; at += 64) __builtin_prefetch(bytes + at);
  }

  void score_row(int64_t query, const Query& about, int64_t row) {
    const int64_t width = task_.bank.width;
    const float* left = task_.queries + query * width;
    const float* right = task_.keys.read(row, decoded_.data());
    const double error = static_cast<double>(width + 2) * 0x1p-53 * about.norm * task_.bank.largest_norm;
    const double sum = task_.kernels.dot(left, right, width);
    const Best found = {rounded_product(sum, error, left, right, width, &counts.exact_sums), row};
    if (static_cast<int64_t>(best_.size()) == task_.k) {
      if (!found.before(best_.back())) return;
      best_.pop_back();
    }
    best_.insert(std::upper_bound(best_.begin(), best_.end(), found,
                                  [](const Best& a, const Best& b) { return a.before(b); }),
                 found);
  }

  const Task& task_;
  std::vector<Panel> panels_;
  std::vector<Selection> selections_;
  std::vector<float> lowers_;
  std::vector<Best> best_;
  std::vector<float> decoded_;
  Hits hits_;
};

}  // namespace

Counts search(const Bank& bank, const Rows& keys, const float* queries, int64_t query_count, int64_t k, int threads,
              const Kernels& kernels, float* scores, int64_t* ids) {
  const Scans scans = bank.kind == Kind::int8 ? kernels.int8 : kernels.bf16;
  const Task task = {bank, keys, queries, query_count, k, kernels, scans, scores, ids};
  const int64_t panels = (query_count + kBlock - 1) / kBlock;
  const int64_t parts = std::max<int64_t>(1, std::min<int64_t>(threads, panels));
  std::vector<Counts> counts(parts);
  std::vector<std::exception_ptr> errors(parts);
  const auto work = [&](int64_t part) {
    try {
      const int64_t first = panels * part / parts, last = panels * (part + 1) / parts;
      Worker worker(task, last - first);
      worker.run(first, last);
      counts[part] = worker.counts;
    } catch (...) {
      errors[part] = std::current_exception();
    }
  };
  std::vector<std::thread> others;
  for (int64_t part = 1; part < parts; ++part) others.emplace_back(work, part);
  work(0);
  for (auto& other : others) other.join();
  Counts total;
  for (int64_t part = 0; part < parts; ++part) {
    if (errors[part]) std::rethrow_exception(errors[part]);
    total.candidates += counts[part].candidates;
    total.rescored += counts[part].rescored;
    total.exact_sums += counts[part].exact_sums;
    total.fallbacks += counts[part].fallbacks;
  }
  return total;
}

}  // namespace vokenray

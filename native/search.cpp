#include "search.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <exception>
#include <limits>
#include <thread>
#include <vector>

#include "exact.h"
#include "query.h"

namespace vokenray {
namespace {

constexpr int64_t kPanelsAtOnce = 32;        // panels of queries that share a pass over the keys
constexpr int64_t kKeyBytes = 384 << 10;     // of keys scanned for panel after panel: they stay in the second-level cache
constexpr size_t kFirstLimit = 256;          // candidates before the first compaction
constexpr size_t kMostCandidates = 1 << 16;  // beyond, the query is scored against every key
constexpr int64_t kAhead = 3;                // candidates whose rows are fetched before they are scored

struct Candidate {
  int32_t row;
  float upper;  // no smaller than the centred inner product, in units of the query
  bool operator<(const Candidate& other) const { return upper < other.upper; }
};

struct Progress {
  std::vector<Candidate> candidates;
  std::vector<float> best;  // a heap, smallest first: the k largest lower bounds so far
  size_t limit = kFirstLimit;
  bool overflowed = false;
};

struct Best {
  float score;
  int64_t row;
  bool before(const Best& other) const { return score > other.score || (score == other.score && row < other.row); }
};

struct Task {
  const Bank& bank;
  const float* keys;
  const float* queries;
  int64_t query_count, k;
  const Kernels& kernels;
  Scan scan;
  float* scores;
  int64_t* ids;
};

class Worker {
 public:
  explicit Worker(const Task& task) : task_(task), progress_(kPanelsAtOnce * kBlock) {
    for (int64_t i = 0; i < kPanelsAtOnce; ++i) panels_.emplace_back(task.bank);
  }

  // Answers the queries of panels first..last-1.
  void run(int64_t first, int64_t last) {
    for (int64_t panel = first; panel < last; panel += kPanelsAtOnce) {
      const int64_t count = std::min(kPanelsAtOnce, last - panel);
      prepare(panel, count);
      task_.kernels.begin();
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
      progress_[i].candidates.clear();
      progress_[i].best.clear();
      progress_[i].limit = kFirstLimit + 2 * static_cast<size_t>(task_.k);
      progress_[i].overflowed = false;
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
        for (int64_t block = from; (block = task_.scan(keys, block, to, view, &hits_)) < to; ++block) {
          take(block, &panels_[i], progress_.data() + i * kBlock);
        }
      }
    }
  }

  // Notes every pair that a scan stopped at, and raises the thresholds.
  void take(int64_t block, Panel* panel, Progress* progress) {
    const Bank& bank = task_.bank;
    const float scale = bank.scale[block], norm = bank.norm[block], residual = bank.residual[block];
    for (int place = 0; place < kBlock; ++place) {
      const int32_t row = bank.rows[block * kBlock + place];
      if (row < 0) break;
      for (uint32_t bits = hits_.queries[place]; bits; bits &= bits - 1) {
        const int query = __builtin_ctz(bits);
        const int cell = place * kBlock + query;
        const float sum = bank.kind == Kind::int8 ? static_cast<float>(reinterpret_cast<int32_t*>(hits_.scores)[cell])
                                                  : reinterpret_cast<float*>(hits_.scores)[cell];
        const float bound =
            panel->by_norm[query] * norm + panel->by_residual[query] * residual + panel->constant[query];
        const float score = sum * scale;
        if (score + bound < panel->threshold[query]) continue;
        note(panel, query, &progress[query], {row, score + bound}, score - bound);
      }
    }
  }

  void note(Panel* panel, int query, Progress* progress, Candidate candidate, float lower) {
    auto& best = progress->best;
    progress->candidates.push_back(candidate);
    const auto smallest_first = std::greater<float>();
    if (static_cast<int64_t>(best.size()) < task_.k) {
      best.push_back(lower);
      std::push_heap(best.begin(), best.end(), smallest_first);
    } else if (lower > best.front()) {
      std::pop_heap(best.begin(), best.end(), smallest_first);
      best.back() = lower;
      std::push_heap(best.begin(), best.end(), smallest_first);
    }
    if (static_cast<int64_t>(best.size()) == task_.k) {
      panel->threshold[query] = best.front() - round_up(panel->queries[query].margin);
    }
    if (progress->candidates.size() < progress->limit) return;
    compact(progress, panel->threshold[query]);
    if (progress->candidates.size() > progress->limit / 2) progress->limit *= 2;
    if (progress->limit > kMostCandidates + 4 * static_cast<size_t>(task_.k)) {
      progress->overflowed = true;
      panel->threshold[query] = kNever;
      progress->candidates.clear();
      progress->candidates.shrink_to_fit();
    }
  }

  static void compact(Progress* progress, float threshold) {
    auto& all = progress->candidates;
    all.erase(std::remove_if(all.begin(), all.end(), [&](const Candidate& c) { return c.upper < threshold; }),
              all.end());
  }

  void finish(int64_t query, int64_t slot) {
    Panel& panel = panels_[slot / kBlock];
    const int place = static_cast<int>(slot % kBlock);
    const Query& about = panel.queries[place];
    best_.clear();
    if (about.is_zero) {
      for (int64_t row = 0; row < task_.k; ++row) best_.push_back({0.0f, row});
    } else if (about.needs_every_key || progress_[slot].overflowed) {
      ++counts.fallbacks;
      for (int64_t row = 0; row < task_.bank.count; ++row) score_row(query, about, row);
    } else {
      decide(query, about, &progress_[slot], panel.threshold[place]);
    }
    for (int64_t i = 0; i < task_.k; ++i) {
      task_.scores[query * task_.k + i] = best_[i].score;
      task_.ids[query * task_.k + i] = best_[i].row;
    }
  }

  // Scores the candidates from the highest upper bound down, until none can reach the k-th best.
  void decide(int64_t query, const Query& about, Progress* progress, float threshold) {
    compact(progress, threshold);
    auto& heap = progress->candidates;
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
    const char* bytes = reinterpret_cast<const char*>(task_.keys + row * task_.bank.width);
    const int64_t end = std::min<int64_t>(task_.bank.width * 4, 4096);
    for (int64_t at = 0; at < end; at += 64) __builtin_prefetch(bytes + at);
  }

  void score_row(int64_t query, const Query& about, int64_t row) {
    const int64_t width = task_.bank.width;
    const float* left = task_.queries + query * width;
    const float* right = task_.keys + row * width;
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
  std::vector<Progress> progress_;
  std::vector<Best> best_;
  Hits hits_;
};

}  // namespace

Counts search(const Bank& bank, const float* keys, const float* queries, int64_t query_count, int64_t k, int threads,
              const Kernels& kernels, float* scores, int64_t* ids) {
  const Scan scan = bank.kind == Kind::int8 ? kernels.int8 : kernels.bf16;
  const Task task = {bank, keys, queries, query_count, k, kernels, scan, scores, ids};
  const int64_t panels = (query_count + kBlock - 1) / kBlock;
  const int64_t parts = std::max<int64_t>(1, std::min<int64_t>(threads, panels));
  std::vector<Counts> counts(parts);
  std::vector<std::exception_ptr> errors(parts);
  const auto work = [&](int64_t part) {
    try {
      Worker worker(task);
      worker.run(panels * part / parts, panels * (part + 1) / parts);
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

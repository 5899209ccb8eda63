// The rows of a scan that the error bound cannot exclude from the k best.
#pragma once

#include <atomic>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "core/parallel.h"
#include "index/ranked.h"

namespace qcompile {

// A lower bound of the k-th best score, shared by the threads that scan for one query.
class Threshold {
 public:
  float get() const { return value_.load(std::memory_order_relaxed); }
  void reset() { value_.store(-std::numeric_limits<float>::infinity(), std::memory_order_relaxed); }
  void raise(float value) {
    float seen = get();
    while (seen < value && !value_.compare_exchange_weak(seen, value, std::memory_order_relaxed)) {
    }
  }

 private:
  std::atomic<float> value_{-std::numeric_limits<float>::infinity()};
};

// A row by its approximate score, and the bound that its final score does not exceed; see
// bar_for().
struct Candidate {
  float score;
  float upper;
  int32_t row;
};

// Gives the final score of a row.
using ScoreRow = FunctionRef<float(int32_t)>;

// What one thread found for one query: final scores of the rows that looked like the k best when
// they were met, and the other rows that may be among them.
class Collector {
 public:
  void start(int64_t k, Threshold* threshold);
  // The final score that a row has to reach.
  float threshold() const { return threshold_->get(); }
  void meet(const Candidate& row) { met_.push_back(row); }
  // Scores those of the rows met that look like the k best, and keeps the others that may be.
  void settle(ScoreRow score);
  // Rows that are neither scored nor excluded.
  int64_t pending() const { return std::ssize(pending_); }
  // Drops what has been excluded meanwhile.
  void tidy();
  // Scores what is pending; `fetch` is called for each row some time before.
  void finish(ScoreRow score, FunctionRef<void(int32_t)> fetch);
  // The best of those scored, k at most, in no order.
  std::span<const Ranked> best() const { return best_; }

 private:
  struct Pending {
    float upper;
    int32_t row;
  };

  void place(const Candidate& row, ScoreRow score);
  // Keeps the k best of those scored, and raises the threshold to the last of them.
  void shrink();

  int64_t k_ = 0;
  Threshold* threshold_ = nullptr;
  std::vector<Candidate> met_;
  std::vector<Ranked> best_;
  std::vector<Pending> pending_;
};

}  // namespace qcompile

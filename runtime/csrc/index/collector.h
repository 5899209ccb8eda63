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

// A row by its approximate score, and the bounds of its final score: it does not exceed `upper`,
// see bar_for(), and `lower` is as known_lower() takes it.
struct Candidate {
  float score;
  float upper;
  float lower;
  int32_t row;
};

// Gives the final score of a row.
using ScoreRow = FunctionRef<float(int32_t)>;

// What one thread found for one query: the rows that may be among the k best, and final scores of
// some of them. Final scores exclude more than bounds do, but a row far away in memory costs as
// much as a few hundred that are scanned.
class Collector {
 public:
  void start(int64_t k, Threshold* threshold);
  // The final score that a row has to reach.
  float threshold() const { return threshold_->get(); }
  void meet(const Candidate& row) { met_.push_back(row); }
  // Keeps those of the rows met that may be among the k best, and scores none: the k-th best lower
  // bound is the threshold.
  void keep();
  // The same, but scores those that look like the k best: for bounds that are far apart.
  void settle(ScoreRow score);
  // Rows that are neither scored nor excluded.
  int64_t pending() const { return std::ssize(pending_); }
  // Drops what has been excluded meanwhile.
  void tidy();
  // Scores the most promising of what is pending, once that has become much, and drops what they
  // exclude.
  void sharpen(ScoreRow score);
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
  // Moves the k rows of the greatest upper bounds, or all, to the end of those pending; returns how
  // many.
  ptrdiff_t rank_pending();
  // Scores the last `count` rows of those pending.
  void score_pending(ptrdiff_t count, ScoreRow score, FunctionRef<void(int32_t)> fetch);
  // Keeps the k best of those scored, and raises the threshold to the last of them.
  void shrink();
  // Keeps the k best lower bounds, and raises the threshold to the last of them.
  void raise();

  int64_t k_ = 0;
  Threshold* threshold_ = nullptr;
  std::vector<Candidate> met_;
  std::vector<Ranked> best_;
  std::vector<Pending> pending_;
  std::vector<float> lowers_;  // lower bounds of some rows
  int64_t sharpened_ = 0;      // what was pending after that
};

}  // namespace qcompile

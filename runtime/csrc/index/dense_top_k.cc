#include "index/dense_top_k.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "index/cell_kernels.h"
#include "index/dense.h"
#include "index/operators.h"
#include "index/piece_sum.h"
#include "index/ranked.h"
#include "index/rescore.h"

namespace qcompile {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int64_t kPieceRows = 1024;      // rows whose scores are kept at once
constexpr int64_t kWordRows = 64;         // rows of one word of bits
constexpr int64_t kMostCandidates = 256;  // and four for each of the k best
static_assert(kPieceRows % kWordRows == 0 && kPieceRows % kPanelRows == 0);

// The rows that one thread found to be possibly among the k best of one query.
class Candidates {
 public:
  // Of two fp32 scores that are `width` apart the greater is the greater.
  void start(int64_t k, float width) {
    k_ = k;
    width_ = width;
    bar_ = -kInfinity;
    room_ = first_room();
    rows_.clear();
    full_ = odd_ = false;
  }

  // Takes in the scores [count] of rows from `first` on, with room for a whole number of words.
  void add(const float* scores, int64_t first, int64_t count, Isa isa) {
    const NotBelow reach = not_below(isa);
    for (int64_t at = 0; at < count; at += kWordRows) {
      uint64_t bits = reach(scores + at, bar_);
      if (count - at < kWordRows) bits &= (uint64_t{1} << (count - at)) - 1;
      for (; bits != 0; bits &= bits - 1) {
        const int64_t row = at + std::countr_zero(bits);
        rows_.push_back({scores[row], static_cast<int32_t>(first + row)});
        odd_ = odd_ || !(scores[row] < kInfinity);
      }
      if (std::ssize(rows_) >= room_) tighten();
    }
  }

  void add(const Candidates& other) {
    full_ = full_ || other.full_;
    odd_ = odd_ || other.odd_;
    rows_.insert(rows_.end(), other.rows_.begin(), other.rows_.end());
    tighten();
  }

  // Whether there are too many of them to tell.
  bool full() const { return full_; }
  // Whether a score is infinity or no number.
  bool odd() const { return odd_; }
  std::vector<Ranked>& rows() { return rows_; }

 private:
  int64_t first_room() const { return kMostCandidates / 2 + 4 * k_; }

  // Drops what cannot be among the k best.
  void tighten() {
    if (std::ssize(rows_) <= k_) return;
    const auto kth = rows_.begin() + k_ - 1;
    std::nth_element(rows_.begin(), kth, rows_.end(), before);
    // Rounding takes less than 2^-22 of this sum.
    const float bar = kth->score - width_ - 0x1p-22f * (std::fabs(kth->score) + width_);
    if (bar > bar_) bar_ = bar;
    std::erase_if(rows_, [this](const Ranked& row) { return row.score < bar_; });
    full_ = full_ || std::ssize(rows_) > kMostCandidates + 4 * k_;
    if (full_) {
      bar_ = kInfinity;  // which odd scores still reach
      rows_.clear();
    }
    room_ = std::max(first_room(), 2 * std::ssize(rows_));
  }

  int64_t k_ = 0, room_ = 0;
  float width_ = 0, bar_ = 0;
  std::vector<Ranked> rows_;
  bool full_ = false, odd_ = false;
};

// Twice what an fp32 score may differ from the float nearest to the exact one: `depth` products and
// sums, the bias, and both roundings of the whole.
float width_of(const Head& head, const float* x) {
  double squares = 0;
  for (int64_t j = 0; j < head.depth(); ++j) squares += static_cast<double>(x[j]) * x[j];
  const double largest = std::sqrt(squares) * head.greatest_norm();
  const double products = largest * static_cast<double>(head.depth() + 8) * 0x1p-24;
  return round_up(2.01 * products + 4 * std::numeric_limits<float>::min());
}

// The pass over all rows.
class DensePass {
 public:
  DensePass(const Head& head, std::span<const DenseAnswer> queries, int64_t k,
            const Executor& executor, Isa isa)
      : head_(head),
        queries_(queries),
        count_(std::ssize(queries)),
        executor_(executor),
        isa_(isa) {
    std::vector<const float*> hidden;
    for (const DenseAnswer& query : queries) hidden.push_back(query.x);
    hidden_.assign(std::move(hidden), head.depth());
    candidates_.resize(static_cast<size_t>(count_ * executor.threads()));
    for (size_t i = 0; i < candidates_.size(); ++i) {
      candidates_[i].start(k, width_of(head, queries[i % queries.size()].x));
    }
    sums_.resize(static_cast<size_t>(count_ * pieces()));
  }

  void run() {
    std::atomic<int64_t> next{0};
    executor_.run(executor_.threads(), [&](int64_t slot) {
      thread_local std::vector<float> scores;
      thread_local std::vector<float*> targets;
      scores.resize(static_cast<size_t>(count_ * kPieceRows));
      targets.clear();
      for (int64_t i = 0; i < count_; ++i) targets.push_back(scores.data() + i * kPieceRows);
      for (int64_t i = next.fetch_add(1); i < pieces(); i = next.fetch_add(1)) {
        add_piece(i, slot, targets);
      }
    });
  }

  Candidates& candidates(int64_t query) {
    Candidates& whole = candidates_[static_cast<size_t>(query)];
    for (int64_t slot = 1; slot < executor_.threads(); ++slot) {
      whole.add(candidates_[static_cast<size_t>(slot * count_ + query)]);
    }
    return whole;
  }

  // In the order of the pieces, whatever thread had them. NaN if a score is NaN or infinity.
  float log_sum(int64_t query) const {
    PieceSum whole{-kInfinity, 0};
    for (int64_t i = 0; i < pieces(); ++i) {
      accumulate(whole, sums_[static_cast<size_t>(i * count_ + query)]);
    }
    return static_cast<float>(whole.shift + std::log(whole.sum));
  }

 private:
  int64_t pieces() const { return ceil_div(head_.rows(), kPieceRows); }

  void add_piece(int64_t piece, int64_t slot, std::span<float* const> targets) {
    const int64_t first = piece * kPieceRows, last = std::min(first + kPieceRows, head_.rows());
    dense_scores(head_.dense(), hidden_, first, last, targets, isa_);
    for (int64_t i = 0; i < count_; ++i) {
      float* scores = targets[static_cast<size_t>(i)];
      candidates_[static_cast<size_t>(slot * count_ + i)].add(scores, first, last - first, isa_);
      sums_[static_cast<size_t>(piece * count_ + i)] = sum_piece(scores, last - first, isa_);
    }
  }

  const Head& head_;
  const std::span<const DenseAnswer> queries_;
  const int64_t count_;
  const Executor& executor_;
  const Isa isa_;
  DenseQueries hidden_;
  std::vector<Candidates> candidates_;  // of each thread and query
  std::vector<PieceSum> sums_;          // of each piece and query
};

}  // namespace

void dense_top_k(const Head& head, std::span<const DenseAnswer> queries, int64_t k, char* answered,
                 const Executor& executor, Isa isa) {
  if (queries.empty()) return;
  DensePass pass(head, queries, k, executor, isa);
  pass.run();
  executor.run(std::ssize(queries), [&](int64_t i) {
    const DenseAnswer& query = queries[static_cast<size_t>(i)];
    Candidates& found = pass.candidates(i);
    *query.log_sum = pass.log_sum(i);
    answered[i] = !found.odd() && std::isfinite(*query.log_sum);
    if (!answered[i]) return;
    if (found.full() || std::ssize(found.rows()) < k) {
      linear_top_k(head, query.x, 1, k, query.scores, query.ids, SerialExecutor(), isa);
      return;
    }
    const std::vector<double> x(query.x, query.x + head.depth());
    write_best(head.dense(), x.data(), found.rows(), k, query.scores, query.ids, isa);
  });
}

}  // namespace qcompile

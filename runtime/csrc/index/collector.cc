#include "index/collector.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include "index/query.h"

namespace qcompile {

void Collector::start(int64_t k, Threshold* threshold) {
  k_ = k;
  threshold_ = threshold;
  met_.clear();
  best_.clear();
  pending_.clear();
  lowers_.clear();
  sharpened_ = 0;
}

void Collector::keep() {
  if (met_.empty()) return;
  const auto room = static_cast<size_t>(2 * k_);
  for (const Candidate& row : met_) {
    const float least = threshold();
    if (row.upper < bar_for(least)) continue;
    pending_.push_back({row.upper, row.row});
    const float lower = known_lower(row.lower);
    if (lower > least) lowers_.push_back(lower);
    if (lowers_.size() >= room) raise();
  }
  raise();
  met_.clear();
}

void Collector::raise() {
  if (std::ssize(lowers_) < k_) return;
  const auto last = lowers_.begin() + (k_ - 1);
  std::nth_element(lowers_.begin(), last, lowers_.end(), std::greater<>());
  threshold_->raise(*last);
  lowers_.resize(static_cast<size_t>(k_));
}

void Collector::settle(ScoreRow score) {
  if (met_.empty()) return;
  auto rest = met_.begin();
  if (std::ssize(met_) > k_) {
    // The k most promising first: they exclude most of the others.
    rest += k_;
    std::nth_element(met_.begin(), rest, met_.end(), [](const Candidate& a, const Candidate& b) {
      return before({a.score, a.row}, {b.score, b.row});
    });
    for (auto row = met_.begin(); row != rest; ++row) place(*row, score);
    shrink();
  }
  for (auto row = std::ssize(met_) > k_ ? rest : met_.begin(); row != met_.end(); ++row) {
    place(*row, score);
  }
  shrink();
  met_.clear();
}

void Collector::place(const Candidate& row, ScoreRow score) {
  const float least = threshold();
  if (!(row.score < least)) {
    best_.push_back({score(row.row), row.row});
  } else if (!(row.upper < bar_for(least))) {
    pending_.push_back({row.upper, row.row});
  }
}

void Collector::shrink() {
  if (std::ssize(best_) < k_) return;
  const auto last = best_.begin() + (k_ - 1);
  std::nth_element(best_.begin(), last, best_.end(), before);
  // Above any number of NaN there is nothing but NaN, which no bound excludes.
  threshold_->raise(std::isnan(last->score) ? std::numeric_limits<float>::infinity() : last->score);
  best_.resize(static_cast<size_t>(k_));
}

void Collector::tidy() {
  const float bar = bar_for(threshold());
  std::erase_if(pending_, [bar](const Pending& row) { return row.upper < bar; });
}

ptrdiff_t Collector::rank_pending() {
  const ptrdiff_t count = std::min<ptrdiff_t>(k_, std::ssize(pending_));
  // NaN, which nothing excludes, above everything.
  const auto less = [](const Pending& a, const Pending& b) {
    return std::isnan(b.upper) ? !std::isnan(a.upper) : a.upper < b.upper;
  };
  std::nth_element(pending_.begin(), pending_.end() - count, pending_.end(), less);
  return count;
}

void Collector::score_pending(ptrdiff_t count, ScoreRow score, FunctionRef<void(int32_t)> fetch) {
  constexpr ptrdiff_t kAhead = 8;
  const auto rows = std::span(pending_).last(static_cast<size_t>(count));
  for (ptrdiff_t i = -kAhead; i < count; ++i) {
    if (i + kAhead < count) fetch(rows[static_cast<size_t>(i + kAhead)].row);
    if (i < 0) continue;
    const int32_t row = rows[static_cast<size_t>(i)].row;
    best_.push_back({score(row), row});
  }
  pending_.resize(pending_.size() - static_cast<size_t>(count));
  if (!best_.empty()) shrink();
}

void Collector::sharpen(ScoreRow score) {
  if (pending() < 2 * (sharpened_ + k_)) return;
  score_pending(rank_pending(), score, [](int32_t) {});
  tidy();
  sharpened_ = pending();
}

void Collector::finish(ScoreRow score, FunctionRef<void(int32_t)> fetch) {
  tidy();
  score_pending(rank_pending(), score, fetch);
  tidy();
  score_pending(std::ssize(pending_), score, fetch);
}

}  // namespace qcompile

#include "index/collector.h"

#include <algorithm>
#include <cmath>

#include "index/query.h"

namespace qcompile {

void Collector::start(int64_t k, Threshold* threshold) {
  k_ = k;
  threshold_ = threshold;
  met_.clear();
  best_.clear();
  pending_.clear();
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

void Collector::finish(ScoreRow score, FunctionRef<void(int32_t)> fetch) {
  constexpr ptrdiff_t kAhead = 8;
  tidy();
  for (ptrdiff_t i = 0; i < std::min(kAhead, std::ssize(pending_)); ++i) fetch(pending_[i].row);
  for (ptrdiff_t i = 0; i < std::ssize(pending_); ++i) {
    if (i + kAhead < std::ssize(pending_)) fetch(pending_[i + kAhead].row);
    best_.push_back({score(pending_[i].row), pending_[i].row});
  }
  pending_.clear();
  if (!best_.empty()) shrink();
}

}  // namespace qcompile

#include "index/best_scores.h"

#include <algorithm>
#include <functional>
#include <limits>

#include "index/cell_kernels.h"

namespace qcompile {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int64_t kTogether = 64 / kBlockRows;

}  // namespace

void BestScores::start(int64_t most, int64_t k, float width, Isa isa) {
  most_ = static_cast<size_t>(most);
  k_ = static_cast<size_t>(k);
  width_ = width;
  isa_ = isa;
  bar_ = -kInfinity;
  keys_.clear();
}

void BestScores::add(const float* scores, const int32_t* list, int64_t listed) {
  if (bar_ == -kInfinity) seed(scores, listed);
  each_reaching(
      scores, list, listed, isa_, [this] { return bar_; },
      [this](float score, uint32_t place) {
        keys_.push_back(rank_key(score, place));
        if (keys_.size() >= 2 * most_ + 256) shrink();
      });
}

const std::vector<uint64_t>& BestScores::finish() {
  shrink();
  if (k_ < most_ && keys_.size() > k_) {
    raise(kth_best());
    std::erase_if(keys_, [this](uint64_t key) { return score_of(key) < bar_; });
  }
  return keys_;
}

float BestScores::kth_best() {
  if (keys_.size() < k_) return -kInfinity;
  const auto kth = keys_.begin() + static_cast<std::ptrdiff_t>(k_) - 1;
  std::nth_element(keys_.begin(), kth, keys_.end(), std::greater<>());
  return score_of(*kth);
}

// Peaks are scores of different rows, so the k-th of them bounds the k-th best from below.
void BestScores::seed(const float* scores, int64_t listed) {
  constexpr int64_t kFew = 4;  // peaks for each of the k best: that many bound it closely
  const auto k = static_cast<int64_t>(k_);
  int64_t groups = kTogether;
  while (groups * kBlockRows < kFew * k && 8 * groups <= listed) groups *= 4;
  if (k > groups * kBlockRows || listed < groups) return;
  peaks_.resize(static_cast<size_t>(groups * kBlockRows));
  lane_peaks(isa_)(scores, listed, groups, peaks_.data());
  const auto kth = peaks_.begin() + static_cast<std::ptrdiff_t>(k_) - 1;
  std::nth_element(peaks_.begin(), kth, peaks_.end(), std::greater<>());
  raise(*kth);
}

// The k-th best is at least `score`. What rounding takes from scores, from the bound of their error
// and from this sum is far less than 2^-18 of them.
void BestScores::raise(float score) {
  const float bar = score - width_ - 0x1p-18f * (std::fabs(score) + width_);
  if (bar > bar_) bar_ = bar;
}

void BestScores::shrink() {
  if (keys_.size() <= most_) return;
  const auto last = keys_.begin() + static_cast<std::ptrdiff_t>(most_) - 1;
  std::nth_element(keys_.begin(), last, keys_.end(), std::greater<>());
  const float score = score_of(*last);
  if (score > bar_) bar_ = score;  // not if it is NaN
  keys_.resize(most_);
}

}  // namespace qcompile

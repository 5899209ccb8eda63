#include "index/best_scores.h"

namespace qcompile {

void BestScores::add(const float* scores, const int32_t* list, int64_t listed, NotBelow reach) {
  constexpr int64_t kTogether = 64 / kBlockRows;
  for (int64_t first = 0; first < listed; first += kTogether) {
    const int64_t blocks = std::min(kTogether, listed - first);
    float padded[64];
    const float* source = scores + first * kBlockRows;
    if (blocks < kTogether) {
      std::copy_n(source, blocks * kBlockRows, padded);
      std::fill(padded + blocks * kBlockRows, padded + 64, 0.0f);
      source = padded;
    }
    uint64_t bits = reach(source, bar_);
    if (blocks < kTogether) bits &= (uint64_t{1} << (blocks * kBlockRows)) - 1;
    for (; bits != 0; bits &= bits - 1) {
      const int at = std::countr_zero(bits);
      const auto place =
          static_cast<uint32_t>(list[first + at / kBlockRows] * kBlockRows + at % kBlockRows);
      keys_.push_back(rank_key(source[at], place));
    }
    if (keys_.size() >= 2 * most_ + 64) shrink();
  }
}

void BestScores::shrink() {
  if (keys_.size() < most_) return;
  const auto last = keys_.begin() + static_cast<std::ptrdiff_t>(most_) - 1;
  std::nth_element(keys_.begin(), last, keys_.end(), std::greater<>());
  // A NaN is no bar: everything else would be below it.
  const float score = score_of(*last);
  if (!std::isnan(score)) bar_ = score;
  keys_.resize(most_);
}

}  // namespace qcompile

// The best of a stream of scores, each with a place: the greatest first, the smaller place of
// equals.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <vector>

#include "core/isa.h"
#include "index/cell_kernels.h"

namespace qcompile {

// Orders like (score, -place); NaN above everything. Every key has a place of its own.
inline uint64_t rank_key(float score, uint32_t place) {
  const auto bits = std::bit_cast<uint32_t>(score);
  const uint32_t order = std::isnan(score) ? ~0u : bits ^ (bits >> 31 ? ~0u : 0x80000000u);
  return uint64_t{order} << 32 | static_cast<uint32_t>(~place);
}
inline uint32_t place_of(uint64_t key) { return ~static_cast<uint32_t>(key); }
inline float score_of(uint64_t key) {
  const auto order = static_cast<uint32_t>(key >> 32);
  return std::bit_cast<float>(order >> 31 ? order ^ 0x80000000u : ~order);
}

// Calls body(score, place) for those of scores [listed, 16] that are not below bar(), which is
// asked anew from time to time; their places are in the listed blocks.
template <typename Bar, typename Body>
void each_reaching(const float* scores, const int32_t* list, int64_t listed, Isa isa, Bar&& bar,
                   Body&& body) {
  constexpr int64_t kTogether = 64 / kBlockRows;
  const NotBelow reach = not_below(isa);
  for (int64_t first = 0; first < listed; first += kTogether) {
    const int64_t blocks = std::min(kTogether, listed - first);
    float padded[64];
    const float* source = scores + first * kBlockRows;
    if (blocks < kTogether) {
      std::copy_n(source, blocks * kBlockRows, padded);
      std::fill(padded + blocks * kBlockRows, padded + 64, 0.0f);
      source = padded;
    }
    uint64_t bits = reach(source, bar());
    if (blocks < kTogether) bits &= (uint64_t{1} << (blocks * kBlockRows)) - 1;
    for (; bits != 0; bits &= bits - 1) {
      const int at = std::countr_zero(bits);
      const int32_t block = list[first + at / kBlockRows];
      body(source[at], static_cast<uint32_t>(block) * kBlockRows + at % kBlockRows);
    }
  }
}

class BestScores {
 public:
  // Keeps the `most` best. Of these it may drop what is more than `width` below the k-th best,
  // k <= most, and a little more for rounding.
  void start(int64_t most, int64_t k, float width, Isa isa);

  // Offers scores [listed, 16] with the places of the listed blocks.
  void add(const float* scores, const int32_t* list, int64_t listed);

  // The best of those offered, in no order; more may be added afterwards.
  const std::vector<uint64_t>& finish();

  // The k-th best score offered; minus infinity if there are fewer.
  float kth_best();

 private:
  void seed(const float* scores, int64_t listed);
  void raise(float score);
  void shrink();

  size_t most_ = 0, k_ = 0;
  float width_ = 0, bar_ = 0;
  Isa isa_ = Isa::kScalar;
  std::vector<uint64_t> keys_;
  std::vector<float> peaks_;
};

}  // namespace qcompile

// The best of a stream of scores, each with a place: the greatest first, the smaller place of
// equals.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <vector>

#include "core/isa.h"

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

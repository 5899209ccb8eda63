// The best of a stream of scores, each with a place: the greatest first, the smaller place of
// equals.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

#include "core/isa.h"
#include "index/cell_kernels.h"

namespace qcompile {

// Orders like (score, -place); NaN above everything. Every key has a place of its own.
inline uint64_t rank_key(float score, uint32_t place) {
  const auto bits = std::bit_cast<uint32_t>(score);
  const uint32_t order = std::isnan(score) ? ~0u : bits ^ (bits >> 31 ? ~0u : 0x80000000u);
  return uint64_t{order} << 32 | ~place;
}
inline uint32_t place_of(uint64_t key) { return ~static_cast<uint32_t>(key); }
inline float score_of(uint64_t key) {
  const auto order = static_cast<uint32_t>(key >> 32);
  return std::bit_cast<float>(order >> 31 ? order ^ 0x80000000u : ~order);
}

class BestScores {
 public:
  void start(int64_t most) {
    most_ = static_cast<size_t>(most);
    keys_.clear();
    bar_ = -std::numeric_limits<float>::infinity();
  }

  // Offers scores [count] with the places of blocks `list`, 16 each.
  void add(const float* scores, const int32_t* list, int64_t listed, NotBelow reach);

  // A score that most_ of those offered so far reach; minus infinity if there are fewer.
  float bar() const { return bar_; }

  // The best of those offered, in no order.
  const std::vector<uint64_t>& finish() {
    shrink();
    return keys_;
  }

 private:
  void shrink();

  size_t most_ = 0;
  float bar_ = 0;
  std::vector<uint64_t> keys_;
};

}  // namespace qcompile

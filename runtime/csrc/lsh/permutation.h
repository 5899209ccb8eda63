#pragma once

#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

#include "core/random.h"

namespace qcompile {

// The first `count` of a random permutation of 0..size-1 (Fisher and Yates).
inline std::vector<uint32_t> permutation(int64_t size, int64_t count, uint64_t seed,
                                         uint64_t stream) {
  std::vector<uint32_t> order(size);
  std::iota(order.begin(), order.end(), 0u);
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t other = i + below(random_bits(seed, stream, i), size - i);
    std::swap(order[i], order[other]);
  }
  order.resize(count);
  return order;
}

}  // namespace qcompile

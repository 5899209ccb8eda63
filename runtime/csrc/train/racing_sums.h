// Sums that several threads add to without waiting for each other.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "core/buffer.h"

namespace qcompile {

// Rows of floats. As in SLIDE (MLSys 2020, section 4.3.1) and HOGWILD! (Recht et al., NeurIPS
// 2011) there is no lock: of two threads that add to one element in the same instant, one term may
// be lost, and terms come in any order. Loads and stores are relaxed atomics, so that nothing is
// undefined.
class RacingSums {
 public:
  // All zero; not to be called while others add.
  void reset(int64_t rows, int64_t size) {
    size_ = size;
    float* sums = sums_.resize(rows * size);
    std::fill(sums, sums + rows * size, 0.0f);
  }

  // row += scale · x [count], from element `first` on.
  void add(int64_t row, int64_t first, float scale, const float* x, int64_t count) {
    float* sums = sums_.data() + row * size_ + first;
    for (int64_t i = 0; i < count; ++i) {
      const std::atomic_ref<float> sum(sums[i]);
      sum.store(sum.load(std::memory_order_relaxed) + scale * x[i], std::memory_order_relaxed);
    }
  }

  // To be read when nobody adds any more.
  const float* row(int64_t row) const { return sums_.data() + row * size_; }

 private:
  Buffer<float> sums_;
  int64_t size_ = 0;
};

}  // namespace qcompile

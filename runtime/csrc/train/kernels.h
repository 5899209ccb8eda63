// Inner loops of training. Every instruction set gives the same bits: sums go in a fixed order and
// products are rounded before they are added (the build forbids contraction).
#pragma once

#include <cstdint>

#include "core/isa.h"

namespace qcompile {

// A matrix that is read by (row, column) at data[row * row_stride + column * column_stride].
struct Strided {
  const float* data;
  int64_t row_stride;
  int64_t column_stride;
};

struct TrainKernels {
  // Σ a[i] b[i].
  float (*dot)(const float* a, const float* b, int64_t size);

  // y += scale · x.
  void (*add_scaled)(float scale, const float* x, float* y, int64_t size);

  // c [rows, columns] += a [rows, depth] · b [depth, columns]; b and c have contiguous rows, their
  // strides apart. Terms are added one by one in the order of `depth`.
  void (*multiply_add)(int64_t rows, int64_t columns, int64_t depth, Strided a, const float* b,
                       int64_t b_stride, float* c, int64_t c_stride);
};

const TrainKernels& train_kernels(Isa isa = best_isa());

}  // namespace qcompile

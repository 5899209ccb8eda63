// Inner loops of training on float32. Every instruction set gives the same bits: each product is
// added by one fused multiply-add, in an order that does not depend on the width of the vectors.
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
  // Σ a[i] b[i]: 64 partial sums, added up in halves.
  float (*dot)(const float* a, const float* b, int64_t size);

  // y += scale · x.
  void (*add_scaled)(float scale, const float* x, float* y, int64_t size);

  // c [rows, columns] += a [rows, depth] · b [depth, columns]; b and c have contiguous rows, their
  // strides apart. Terms are added one by one in the order of `depth`.
  void (*multiply_add)(int64_t rows, int64_t columns, int64_t depth, Strided a, const float* b,
                       int64_t b_stride, float* c, int64_t c_stride);
};

constexpr int64_t kDotLanes = 64;

extern const TrainKernels kScalarTrainKernels;
extern const TrainKernels kAvx2TrainKernels;
extern const TrainKernels kAvx512TrainKernels;

inline const TrainKernels& train_kernels(Isa isa = best_isa()) {
  if (isa >= Isa::kAvx512) return kAvx512TrainKernels;
  return isa == Isa::kAvx2 ? kAvx2TrainKernels : kScalarTrainKernels;
}

}  // namespace qcompile

// Softmax over the rows of a block of logits [rows, stride], one column an example. Every
// instruction set gives the same bits.
#pragma once

#include <cstdint>

#include "core/isa.h"

namespace qcompile {

// `stride` is a multiple of kLanes; columns beyond the examples hold anything finite.
struct ColumnKernels {
  // Adds bias[r] and, where drawn[r] is 1 and not 0, correction[e] to each logit; top[e] becomes
  // the greatest of itself and the column.
  void (*complete)(float* logits, int64_t rows, int64_t stride, const float* bias,
                   const float* drawn, const float* correction, float* top);

  // to = exp(logits − shift[e]); sums[e] is their sum over the rows. `to` may be `logits`.
  void (*exponentials)(const float* logits, float* to, int64_t rows, int64_t stride,
                       const float* shift, float* sums);

  // to = factor[e] · exp(logits − shift[e]); row_sums[r] is their sum over the columns. `to` may
  // be `logits`.
  void (*gradients)(const float* logits, float* to, int64_t rows, int64_t stride,
                    const float* shift, const float* factor, float* row_sums);
};

const ColumnKernels& column_kernels(Isa isa = best_isa());

}  // namespace qcompile

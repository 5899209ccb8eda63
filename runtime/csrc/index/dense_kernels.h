// Kernels behind index/dense.h, one set for each instruction set.
#pragma once

#include <cstdint>

#include "core/isa.h"
#include "index/dense.h"

namespace qcompile {

struct DenseKernels {
  // Rows of one query, one after the other.
  void (*rows)(const Dense& dense, const DenseQuery& query, int64_t begin, int64_t end);
  // weight rows [first, first + 32) into panel [depth, 32]; rows from `end` on are zero.
  void (*transpose)(const Dense& dense, int64_t first, int64_t end, float* panel);
  // panel times queries into sums [count, 32].
  void (*multiply)(const float* panel, int64_t depth, const DenseQuery* queries, int64_t count,
                   float* sums);
};

extern const DenseKernels kDenseScalar;
extern const DenseKernels kDenseAvx2;
extern const DenseKernels kDenseAvx512;

}  // namespace qcompile

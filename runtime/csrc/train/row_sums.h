#pragma once

#include <cstdint>

#include "core/isa.h"

namespace qcompile {

// A weighted sum of rows. Every instruction set gives the same bits: each element adds its terms
// in order, and products are rounded before they are added (the build forbids contraction).
struct RowSumKernels {
  // sum [depth] += Σ scales[i] · rows[ids[i]], rows of `depth` elements apart.
  void (*of_floats)(const float* rows, int64_t depth, const uint32_t* ids, const float* scales,
                    int64_t count, float* sum);
  // The same for rows in bfloat16.
  void (*of_bfloats)(const uint16_t* rows, int64_t depth, const uint32_t* ids, const float* scales,
                     int64_t count, float* sum);
};

const RowSumKernels& row_sum_kernels(Isa isa = best_isa());

}  // namespace qcompile

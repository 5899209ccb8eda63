// Kernels behind index/dense.h, one set for each instruction set.
#pragma once

#include <cstdint>

#include "core/isa.h"
#include "index/dense.h"

namespace qcompile {

// Rows and queries that are multiplied in registers.
struct DensePanel {
  const float* rows;     // [depth, kPanelRows]
  const float* queries;  // [depth, together], the queries' coordinates side by side
  const float* bias;     // [kPanelRows]
  int64_t depth;
};

struct DenseKernels {
  // Scores of rows [begin, end) for x [depth], one row after the other.
  void (*rows)(const Dense& dense, const float* x, int64_t begin, int64_t end, float* scores);
  // weight rows [first, first + 32) into panel [depth, 32]; rows from `end` on are zero.
  void (*transpose)(const Dense& dense, int64_t first, int64_t end, float* panel);
  // Products of all rows and queries of a panel, and the bias, into scores [together, kPanelRows].
  void (*multiply)(const DensePanel& panel, int64_t together, float* scores);
};

// Queries of one panel at most; fewer are padded with zeros to a multiple of kQueryStep.
inline constexpr int64_t kPanelQueriesMost = 12;
inline constexpr int64_t kQueryStep = 4;

extern const DenseKernels kDenseScalar;
extern const DenseKernels kDenseAvx2;
extern const DenseKernels kDenseAvx512;

}  // namespace qcompile

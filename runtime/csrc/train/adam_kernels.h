#pragma once

#include <cstdint>

#include "core/isa.h"
#include "train/adam_idle.h"
#include "train/late_rows.h"
#include "train/row_matrix.h"

namespace qcompile {

// A parameter and its moments, [rows, depth] in the same storage.
struct AdamMatrix {
  RowMatrix weight;
  void* first = nullptr;   // exponential average of gradients
  void* second = nullptr;  // exponential average of squared gradients
};

// One step of Adam as torch.optim.Adam computes it in single precision.
struct GradientStep {
  float shrink;        // 1 − learning rate · decoupled weight decay
  float first_rate;    // 1 − β1
  float second_rate;   // 1 − β2
  float second_decay;  // β2
  float step_size;     // learning rate / (1 − β1^k)
  float second_scale;  // 1 / √(1 − β2^k)
  float epsilon;
};

// Each element has its own chain of correctly rounded operations: equal for all instruction sets.
struct AdamKernels {
  // Lets rows catch up.
  void (*idle)(const AdamMatrix& matrix, const RowBlock& block, const IdleTable& table);
  // The same, and then one step with gradients [block.count, depth].
  void (*step)(const AdamMatrix& matrix, const RowBlock& block, const IdleTable& table,
               const float* gradients, const GradientStep& step);
};

const AdamKernels& adam_kernels(Storage storage, Isa isa = best_isa());

}  // namespace qcompile

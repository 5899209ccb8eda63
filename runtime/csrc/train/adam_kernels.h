#pragma once

#include <cstdint>

#include "core/isa.h"

namespace qcompile {

// One row of a parameter and of its moments.
struct AdamRow {
  float* value;
  float* first;
  float* second;
  int64_t size;
};

// value −= sum · first / (√second · spread + epsilon), then the moments decay.
struct IdleStep {
  float sum;
  float spread;
  float epsilon;
  float first_decay;
  float second_decay;
};

// One step of Adam as torch.optim.Adam computes it in single precision.
struct GradientStep {
  float first_rate;    // 1 − β1
  float second_rate;   // 1 − β2
  float second_decay;  // β2
  float step_size;     // learning rate / (1 − β1^k)
  float second_scale;  // √(1 − β2^k)
  float epsilon;
};

// Each element has its own chain of correctly rounded operations: equal for all instruction sets.
struct AdamKernels {
  void (*idle)(const AdamRow& row, const IdleStep& step);
  void (*gradient)(const AdamRow& row, const float* gradient, const GradientStep& step);
};

const AdamKernels& adam_kernels(Isa isa = best_isa());

}  // namespace qcompile

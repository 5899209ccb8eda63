// Adam for a matrix of which each step touches a few rows.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/parallel.h"
#include "train/adam_kernels.h"

namespace qcompile {

// Adam (Kingma and Ba, ICLR 2015) as torch.optim.Adam computes it; 0 ≤ β1 < 1, 0 < β2 < 1.
struct AdamRates {
  double learning_rate = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double epsilon = 1e-8;
};

// A parameter and its moments, each [rows, depth] and contiguous.
struct AdamMatrix {
  float* value = nullptr;
  float* first = nullptr;   // exponential average of gradients
  float* second = nullptr;  // exponential average of squared gradients
  int64_t depth = 0;
};

// Dense Adam moves every row at every step, because momentum goes on without a gradient. Here a
// row that was idle for some steps catches up in closed form when it is next touched, or in
// flush(). Idle at steps s+1 … t, with learning rates a_k, dense Adam moves a weight by
//   −m Σ a_k β1^(k−s) / (1−β1^k) / (√v · b_k + ε),  b_k = √(β2^(k−s) / (1−β2^k)).
// The b_k vary slowly; a mean b is taken out of the sum, such that the result is exact both where
// ε is negligible and where √v is, and a fraction of a percent off where they are alike.
class RowAdam {
 public:
  // After so many steps all rows catch up, which bounds the history that is kept.
  static constexpr int64_t kFlushAfter = 1024;

  // `steps` have been taken before, and no row is behind.
  RowAdam(int64_t rows, int64_t steps);

  int64_t rows() const { return static_cast<int64_t>(taken_.size()); }
  int64_t steps() const { return base_ + static_cast<int64_t>(history_.size()); }

  // One step with gradients [ids.size(), depth] of rows `ids`, which may repeat (they add up) and
  // come in any order. Throws std::out_of_range for an id that is no row.
  void step(const AdamMatrix& matrix, std::span<const int64_t> ids, const float* gradients,
            const AdamRates& rates, const Executor& executor);

  // Brings every row to the present step.
  void flush(const AdamMatrix& matrix, const Executor& executor);

 private:
  std::vector<IdleStep> idle_steps(int64_t until) const;

  int64_t base_;                    // steps before the history
  std::vector<AdamRates> history_;  // of the steps since then
  std::vector<int32_t> taken_;      // [rows] length of the history that a row has followed
};

}  // namespace qcompile

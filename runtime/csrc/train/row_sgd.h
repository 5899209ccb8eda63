// Stochastic gradient descent for a matrix of which each step touches a few rows.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "train/late_rows.h"
#include "train/row_matrix.h"

namespace qcompile {

// As torch.optim.SGD: d = gradient + λ w, b ← μ b + d, w ← w − learning rate · b; without momentum
// b stays as it is and d takes its place.
struct SgdRates {
  double learning_rate = 1e-3;
  double momentum = 0;      // μ
  double weight_decay = 0;  // λ, coupled: part of the gradient
};

struct SgdMatrix {
  RowMatrix weight;
  void* buffer = nullptr;  // b, in the weight's storage; null if there never was momentum
};

// (w, b) ← (ww · w + wb · b, bw · w + bb · b).
struct SgdIdleStep {
  float ww = 1, wb = 0, bw = 0, bb = 1;
};

struct SgdIdleTable {
  std::vector<SgdIdleStep> by_missed;
  bool still = true;  // idle rows stay as they are
};

struct SgdStep {
  float learning_rate, momentum, weight_decay;
};

struct SgdKernels {
  void (*idle)(const SgdMatrix& matrix, const RowBlock& block, const SgdIdleTable& table);
  void (*step)(const SgdMatrix& matrix, const RowBlock& block, const SgdIdleTable& table,
               const float* gradients, const SgdStep& step);
};

const SgdKernels& sgd_kernels(Storage storage, bool buffer, Isa isa = best_isa());

// An idle step is linear in (w, b), so that any number of them is one matrix of two by two: exact,
// also with rates that vary. See LateRows.
class SgdRule {
 public:
  using Rates = SgdRates;
  using IdleTable = SgdIdleTable;

  SgdRule(const SgdMatrix& matrix, const SgdRates& rates)
      : matrix_(matrix),
        rates_(rates),
        kernels_(&sgd_kernels(matrix.weight.storage, matrix.buffer != nullptr)) {}

  static std::shared_ptr<const IdleTable> idle_table(std::span<const SgdRates> history,
                                                     int64_t before);

  void idle(const RowBlock& block, const IdleTable& table) const {
    if (!table.still) kernels_->idle(matrix_, block, table);
  }
  void step(const RowBlock& block, const IdleTable& table, const float* gradients) const;

  int64_t rows() const { return matrix_.weight.rows; }
  int64_t depth() const { return matrix_.weight.depth; }
  const SgdRates& rates() const { return rates_; }

 private:
  SgdMatrix matrix_;
  SgdRates rates_;
  const SgdKernels* kernels_;
};

inline bool mergeable(const SgdRates&, const SgdRates&) { return true; }

using RowSgd = LateRows<SgdRule>;
using BoundSgd = BoundRows<SgdRule>;

}  // namespace qcompile

// Adam for a matrix of which each step touches a few rows.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "train/adam_kernels.h"
#include "train/late_rows.h"

namespace qcompile {

// A matrix with its moments and the rates of the present step; see LateRows.
class AdamRule {
 public:
  using Rates = AdamRates;
  using IdleTable = qcompile::IdleTable;

  AdamRule(const AdamMatrix& matrix, const AdamRates& rates)
      : matrix_(matrix), rates_(rates), kernels_(&adam_kernels(matrix.weight.storage)) {}

  static std::shared_ptr<const IdleTable> idle_table(std::span<const AdamRates> history,
                                                     int64_t before) {
    return shared_adam_idle_table(history, before);
  }

  void idle(const RowBlock& block, const IdleTable& table) const {
    kernels_->idle(matrix_, block, table);
  }
  void step(const RowBlock& block, const IdleTable& table, const float* gradients) const;

  int64_t rows() const { return matrix_.weight.rows; }
  int64_t depth() const { return matrix_.weight.depth; }
  const AdamRates& rates() const { return rates_; }

 private:
  AdamMatrix matrix_;
  AdamRates rates_;
  const AdamKernels* kernels_;
};

// A catch-up has one epsilon for all its steps; it is the only rate that may not vary.
inline bool mergeable(const AdamRates& a, const AdamRates& b) { return a.epsilon == b.epsilon; }

using RowAdam = LateRows<AdamRule>;
using BoundAdam = BoundRows<AdamRule>;

}  // namespace qcompile

// The interface between what computes gradients of rows and what updates these rows.
#pragma once

#include <cstdint>
#include <span>

#include "core/parallel.h"

namespace qcompile {

// An optimiser bound, for one training step, to a matrix [rows, depth] and to its own state.
// Distinct rows may be worked on at once; results do not depend on the executor.
class RowOptimizer {
 public:
  // Writes gradients [end - begin, depth] of rows ids[begin … end) of the list given to step().
  // Called from several threads, once for each part of the list.
  using Gradients = FunctionRef<void(int64_t begin, int64_t end, float* gradients)>;

  virtual ~RowOptimizer() = default;

  virtual int64_t rows() const = 0;
  virtual int64_t depth() const = 0;

  // Brings rows `ids`, distinct, to the present step, as they must be before they are read.
  virtual void catch_up(std::span<const uint32_t> ids, const Executor& executor) = 0;

  // Takes one step with rows `ids`, distinct; all others are idle. Gradients never meet memory as
  // a whole: each part is consumed while it is in cache. Throws std::logic_error if the matrix
  // has taken a step since the optimiser's last finish_step().
  virtual void step(std::span<const uint32_t> ids, Gradients gradients,
                    const Executor& executor) = 0;

  // Brings every row to the present step.
  virtual void flush(const Executor& executor) = 0;
};

// One step with gradients [ids.size(), depth] of rows `ids`, which may repeat (they add up) and
// come in any order. Throws std::out_of_range for an id that is no row, before anything changes.
void step_repeated(RowOptimizer& optimizer, std::span<const int64_t> ids, const float* gradients,
                   const Executor& executor);

}  // namespace qcompile

#include "train/row_optimizer.h"

#include <algorithm>

#include "core/group.h"
#include "train/kernels.h"

namespace qcompile {

void step_repeated(RowOptimizer& optimizer, std::span<const int64_t> ids, const float* gradients,
                   const Executor& executor) {
  const Groups groups = group_positions(ids, optimizer.rows());
  const int64_t depth = optimizer.depth();
  const auto sum_members = [&](int64_t begin, int64_t end, float* sums) {
    for (int64_t g = begin; g < end; ++g, sums += depth) {
      const std::span<const uint32_t> members = groups.members(g);
      const float* first = gradients + members[0] * depth;
      std::copy(first, first + depth, sums);
      for (uint32_t p : members.subspan(1)) {
        train_kernels().add_scaled(1.0f, gradients + p * depth, sums, depth);
      }
    }
  };
  optimizer.step(groups.keys, sum_members, executor);
}

}  // namespace qcompile

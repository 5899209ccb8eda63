#include "index/cell_groups.h"

#include <algorithm>
#include <cmath>

#include "index/kmeans.h"
#include "index/layout.h"

namespace qcompile {

CellGroups group_cells(const float* means, int64_t cells, int64_t depth, uint64_t seed,
                       const Executor& executor, Isa isa) {
  const QuantisedRows rows = quantise_rows(means, cells, depth, executor, isa);
  const auto count = static_cast<int64_t>(std::ceil(std::sqrt(2.0 * static_cast<double>(cells))));
  const ClusterOptions options{.clusters = std::min(count, cells), .seed = seed, .joint_rounds = 6};
  const std::vector<int32_t> group =
      cluster_rows(means, rows, options, executor, [](double) {}, isa);
  std::vector<int64_t> sizes(static_cast<size_t>(*std::ranges::max_element(group)) + 1);
  for (int32_t of : group) ++sizes[static_cast<size_t>(of)];
  CellGroups result;
  result.offsets.push_back(0);
  std::vector<int32_t> next;
  for (int64_t size : sizes) {
    next.push_back(static_cast<int32_t>(result.offsets.back()) * kBlockRows);
    result.offsets.push_back(result.offsets.back() + static_cast<uint32_t>(block_count(size)));
  }
  for (int32_t of : group) result.number.push_back(next[static_cast<size_t>(of)]++);
  result.cells = int64_t{result.offsets.back()} * kBlockRows;
  return result;
}

}  // namespace qcompile

// Cells of an output layer, found on its weights alone.
#pragma once

#include <cstdint>
#include <vector>

#include "index/head.h"
#include "index/kmeans.h"

namespace qcompile {

// The arrays of index/cells.h.
struct BuiltCells {
  int64_t blocks = 0;
  int64_t cells = 0;
  std::vector<int8_t> packed;
  std::vector<float> scale, error;
  std::vector<uint32_t> offsets;
  std::vector<int32_t> row_ids;
  std::vector<int8_t> centroids;
  std::vector<float> centroid_scale, cell_bias, cell_spread;
  std::vector<uint32_t> group_offsets;
  std::vector<int8_t> group_centroids;
  std::vector<float> group_scale, group_bias, group_spread;
};

// Clusters the rows, groups the clusters and lays both out. A cell that only fills the last block
// of a group has no rows and the least bias there is. The result does not depend on the instruction
// set or the number of threads. Throws std::invalid_argument for a weight with NaN or infinity.
BuiltCells build_cells(const Dense& dense, const ClusterOptions& options, const Executor& executor,
                       Progress progress, Isa isa = best_matrix_isa());

}  // namespace qcompile

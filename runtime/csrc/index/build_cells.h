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
};

// Clusters the rows and lays them out. The result does not depend on the instruction set or the
// number of threads. Throws std::invalid_argument for a weight with NaN or infinity.
BuiltCells build_cells(const Dense& dense, const ClusterOptions& options, const Executor& executor,
                       Progress progress, Isa isa = best_matrix_isa());

}  // namespace qcompile

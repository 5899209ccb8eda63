// Groups of cells whose centroids are near each other.
#pragma once

#include <cstdint>
#include <vector>

#include "core/isa.h"
#include "core/parallel.h"

namespace qcompile {

// Cells in a new order, group after group. Each group begins with a block of centroids of its own,
// so there are cells in between that no row belongs to.
struct CellGroups {
  int64_t cells = 0;              // with those in between
  std::vector<int32_t> number;    // of each cell, in that order
  std::vector<uint32_t> offsets;  // [groups + 1] first block of centroids of each group
};

// Groups cells by their means [cells, depth], into about sqrt(2 cells) groups. The result does not
// depend on the instruction set or the number of threads.
CellGroups group_cells(const float* means, int64_t cells, int64_t depth, uint64_t seed,
                       const Executor& executor, Isa isa);

}  // namespace qcompile

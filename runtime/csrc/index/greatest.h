// The greatest of many scores in the order of their places: for many of them, where keeping the
// best of a stream costs more than looking for the least of them first.
#pragma once

#include <cstdint>
#include <vector>

#include "core/isa.h"

namespace qcompile {

// Appends the rank keys (index/best_scores.h) of the `most` greatest of scores [listed, 16] to
// `keys`, or of all: of equal scores the earlier, and NaN counts as
// infinity. `list` has the blocks that the scores are of.
void append_greatest(const float* scores, const int32_t* list, int64_t listed, int64_t most,
                     std::vector<uint64_t>& keys, Isa isa);

}  // namespace qcompile

// Rows side by side: what hashes many rows at once reads.
#pragma once

#include <cstdint>

#include "core/isa.h"

namespace qcompile {

// columns [depth, kLanes] of kLanes rows of `depth` floats each.
void transpose_rows(const float* const* rows, int64_t depth, float* columns, Isa isa);

}  // namespace qcompile

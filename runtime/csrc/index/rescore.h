// Exact scores: products of floats summed in double precision.
#pragma once

#include <cstdint>

#include "core/isa.h"
#include "index/head.h"

namespace qcompile {

// The score of `row` for x [depth], rounded to float once. Sixteen partial sums in a fixed order,
// and products that are exact in double: the same for every instruction set.
using ScoreKernel = float (*)(const Dense& dense, int64_t row, const double* x);

ScoreKernel score_kernel(Isa isa);

}  // namespace qcompile

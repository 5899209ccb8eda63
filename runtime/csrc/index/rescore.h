// Exact scores: products of floats summed in double precision.
#pragma once

#include <cstdint>
#include <vector>

#include "core/isa.h"
#include "index/head.h"
#include "index/ranked.h"

namespace qcompile {

// The score of `row` for x [depth], rounded to float once. Sixteen partial sums in a fixed order,
// and products that are exact in double: the same for every instruction set.
using ScoreKernel = float (*)(const Dense& dense, int64_t row, const double* x);

ScoreKernel score_kernel(Isa isa);

// Asks for a row that will be scored.
void prefetch_row(const Dense& dense, int64_t row);

// Scores `rows` for x [depth] and writes the k best of them, in order; k <= rows.size().
void write_best(const Dense& dense, const double* x, std::vector<Ranked>& rows, int64_t k,
                float* scores, int64_t* ids, Isa isa);

}  // namespace qcompile

// exp of floats, vectorised; within 2 units in the last place.
#pragma once

#include <cstdint>

#include "core/isa.h"

namespace qcompile {

// Replaces values[i] by exp(values[i] - shift) and returns their sum. Differences must be at most
// 80, or NaN; results below the smallest normal float are zero. The same for every instruction
// set.
double exponentials(float* values, int64_t count, float shift, Isa isa);

// The same; the second of the sums counts each value weights[i / 16] times.
struct WeightedSums {
  double plain;
  double weighted;
};
WeightedSums weighted_exponentials(float* values, int64_t count, float shift, const float* weights,
                                   Isa isa);

// Multiplies values by factor.
void scale_values(float* values, int64_t count, float factor, Isa isa);

// The greatest value that is not NaN; minus infinity if there is none.
float greatest(const float* values, int64_t count, Isa isa);

}  // namespace qcompile

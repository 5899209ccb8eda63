// A hidden vector, quantised, with what the error bound of its scores needs.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "core/isa.h"

namespace qcompile {

// The scan's approximate score of a row is a = scale * (dot * query.scale) + bias. Write w for the
// row, W = scale * q for its quantised form, x for the hidden vector and X for its quantised form.
// Then
//   |w.x - W.X| <= |(w - W).x| + |W.(x - X)| <= |w - W| * |x| + |W| * |x - X|
// by Cauchy-Schwarz, and both |w - W| and |W| are at most `scale` times what RowBounds has of the
// row's tile. Rounding adds at most 4 * 2^-24 * |W.X| for the products, where |W.X| <= |W| * 2|x|,
// and 2^-24 of a for the sum. What a row is finally worth, the float nearest to its score summed in
// double precision, is another 2^-24 of the score away. With
//   norm = |x| and error = |x - X| + 2^-20 * |x|, both rounded up,
//   width = row_error * norm + row_norm * error, widened by 2^-20 of it and by what may be flushed
//     to zero,
// the final score f of a row lies between scale * (dot * query.scale - width) + bias and
// scale * (dot * query.scale + width) + bias, but for 2^-22 of it and a subnormal number. Computing
// these in floats uses up 8 of the 16 units of 2^-24 that are granted, with multiplications and
// additions fused or not.
struct Query {
  float scale = 0;
  float norm = 0;
  float error = 0;
  int32_t sum = 0;      // of X, in units of its scale
  bool finite = false;  // NaN and infinity have no bound; nothing else is set then

  float width(float row_error, float row_norm) const {
    const float bound = row_error * norm + row_norm * error;
    return bound + 0x1p-20f * bound + 4 * std::numeric_limits<float>::min();
  }
};

// Quantises x [depth] into values [4 * step_count(depth)], each with 128 added to it, and
// zero-padded (that is, with 128).
Query encode(const float* x, int64_t depth, uint8_t* values, Isa isa);

// A final score of at least `least` has an upper bound of at least this.
inline float bar_for(float least) {
  if (std::isinf(least)) return least;
  return least - 0x1p-21f * std::fabs(least) - 4 * std::numeric_limits<float>::min();
}

// A lower bound of a final score from `lower`, that of the comment above, or minus infinity if it
// is not one: if it is NaN or infinite.
inline float known_lower(float lower) {
  constexpr float kMost = std::numeric_limits<float>::max();
  return lower >= -kMost && lower <= kMost ? bar_for(lower)
                                           : -std::numeric_limits<float>::infinity();
}

}  // namespace qcompile

// A hidden vector, quantised, with what the error bound of its scores needs.
#pragma once

#include <cstdint>

namespace qcompile {

// The scan's approximate score of a row is a = float(dot) * (row.scale * scale) + row.bias. Write w
// for the row, W = row.scale * q for its quantised form, x for the hidden vector and X for its
// quantised form. Then
//   |w.x - W.X| <= |(w - W).x| + |W.(x - X)| <= row.error * |x| + row.norm * |x - X|
// by Cauchy-Schwarz. Rounding adds at most 3 * 2^-24 * |W.X| for the product, where
// |W.X| <= row.norm * 2|x|, and 2^-24 of a for the sum. What a row is finally worth, the float
// nearest to its score summed in double precision, is another 2^-24 of the score away. With
//   norm = |x| and error = |x - X| + 2^-20 * |x|, both rounded up,
//   bound = row.error * norm + row.norm * error,
//   margin = bound + 2^-21 * (|a| + bound) + underflow
// the final score therefore lies within [a - margin, a + margin], which bound()'s own roundings
// do not change: they use up 6 of the 8 units of 2^-24 that are granted.
struct Query {
  float scale = 0;
  float norm = 0;
  float error = 0;
  float underflow = 0;  // absolute error where products may be flushed to zero
  bool finite = false;  // NaN and infinity have no bound; nothing else is set then
};

// Quantises x [depth] into values [4 * step_count(depth)], each with 128 added to it, and
// zero-padded (that is, with 128).
Query encode(const float* x, int64_t depth, uint8_t* values);

}  // namespace qcompile

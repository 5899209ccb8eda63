// A hidden vector, quantised, with what the error bound of its scores needs.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "core/isa.h"
#include "index/head.h"

namespace qcompile {

// The scan's approximate score of a row is a = float(dot) * (row.scale * scale) + row.bias. Write w
// for the row, W = row.scale * q for its quantised form, x for the hidden vector and X for its
// quantised form. Then
//   |w.x - W.X| <= |(w - W).x| + |W.(x - X)| <= row.error * |x| + row.norm * |x - X|
// by Cauchy-Schwarz. Rounding adds at most 3 * 2^-24 * |W.X| for the product, where
// |W.X| <= row.norm * 2|x|, and 2^-24 of a for the sum. What a row is finally worth, the float
// nearest to its score summed in double precision, is another 2^-24 of the score away. With
//   norm = |x| and error = |x - X| + 2^-20 * |x|, both rounded up,
//   width(row.error, row.norm) = row.error * norm + row.norm * error, widened by 2^-21 of it
//     and by `underflow`,
// the final score therefore lies within width + 2^-21 * |a| of a. Computing this in floats uses up
// 6 of the 8 units of 2^-24 that are granted.
struct Query {
  float scale = 0;
  float norm = 0;
  float error = 0;
  float underflow = 0;  // absolute error where products may be flushed to zero
  bool finite = false;  // NaN and infinity have no bound; nothing else is set then

  float width(float row_error, float row_norm) const {
    const float bound = row_error * norm + row_norm * error;
    return bound + 0x1p-21f * bound + underflow;
  }
};

// Quantises x [depth] into values [4 * step_count(depth)], each with 128 added to it, and
// zero-padded (that is, with 128).
Query encode(const float* x, int64_t depth, uint8_t* values, Isa isa);

inline float approximate(int32_t dot, const BlockFigures& figures, int lane, float query_scale) {
  return static_cast<float>(dot) * (figures.scale[lane] * query_scale) + figures.bias[lane];
}

// Half the interval round an approximate score in which the final score lies.
inline float margin(float score, const BlockFigures& figures, int lane, const Query& query) {
  return query.width(figures.error[lane], figures.norm[lane]) + 0x1p-21f * std::fabs(score);
}

// Where only `width` is known of a margin, this much more than covers the rest of it, 2^-21 of a
// score that is no further than `width` from `value`, and the rounding of sums of the two.
inline float slack(float value, float width) { return 0x1p-19f * (std::fabs(value) + width); }

// A lower bound of a score, or minus infinity if it is not one: if it is NaN, if it is infinite, or
// if it comes from a bias of minus infinity, which is scanned as the lowest float.
inline float known_lower(float lower) {
  constexpr float kMost = std::numeric_limits<float>::max();
  return lower > -0.99f * kMost && lower <= kMost ? lower : -std::numeric_limits<float>::infinity();
}

}  // namespace qcompile

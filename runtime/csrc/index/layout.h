// The packed layout: int8 rows in blocks of 16, four coordinates of each row side by side.
// Its ground truth is runtime/reference/index.py.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "core/isa.h"
#include "core/parallel.h"

namespace qcompile {

inline constexpr int kBlockRows = 16;
inline constexpr int kBlockDepth = 4;
inline constexpr int kStepBytes = kBlockRows * kBlockDepth;
// Sums of d products of two int8 values, offset by 128, stay within int32 up to here.
inline constexpr int64_t kMostPackedDepth = 1 << 16;

inline constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline constexpr int64_t block_count(int64_t rows) { return ceil_div(rows, kBlockRows); }
inline constexpr int64_t step_count(int64_t depth) { return ceil_div(depth, kBlockDepth); }

// value, at least, as a normal float; positive infinity if there is none.
float round_up(double value);

// The finite float nearest to a value that is a number.
inline float finite_float(double value) {
  constexpr double kMost = std::numeric_limits<float>::max();
  return static_cast<float>(std::clamp(value, -kMost, kMost));
}

// Quantises count values to scale * q with |q| <= 127 and scale = max|value| / 127, or to zeros
// with scale 0 where that is no normal number. Returns an upper bound of the residual's Euclidean
// norm, not yet rounded to float. Values must be finite.
double quantise(const float* values, int64_t count, float* scale, int8_t* quantised, Isa isa);

// Packs weight [rows, depth] block by block, into scale [rows] and error [rows], and hands out each
// block's values [step_count, 16, 4], maybe on several threads. Throws std::invalid_argument,
// naming the row, for a value that is not finite.
void pack_blocks(const float* weight, int64_t rows, int64_t depth, float* scale, float* error,
                 const Executor& executor, FunctionRef<void(int64_t, const int8_t*)> take);

// The same into one array, packed [block_count, step_count, 16, 4].
void pack_rows(const float* weight, int64_t rows, int64_t depth, int8_t* packed, float* scale,
               float* error, const Executor& executor);

}  // namespace qcompile

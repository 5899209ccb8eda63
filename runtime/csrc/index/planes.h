// Packed rows as two planes of four bits: a scan that waits for memory reads the first alone.
// Their ground truth is runtime/reference/index.py.
//
// A packed value q, offset by 128, is 16 h + l. The plane of high halves has every h; the plane of
// low halves has every l, or does not exist. A row without it is rough: it has 16 h - 120 in the
// place of q, which is off by l - 8 at each coordinate, -8 to 7. In both planes a step of four
// coordinates of 16 rows and the next one share 64 bytes: the former is in the low halves of those.
#pragma once

#include <cstdint>

#include "core/isa.h"
#include "core/parallel.h"
#include "index/layout.h"

namespace qcompile {

inline constexpr int kRoughOffset = 120;
// Pairs of steps, the latter of the last of which may not exist.
inline constexpr int64_t pair_count(int64_t steps) { return ceil_div(steps, 2); }
// Bytes of one plane of a block.
inline constexpr int64_t plane_bytes(int64_t depth) {
  return pair_count(step_count(depth)) * kStepBytes;
}

// What bounds the quantisation error of a tile's rows, in units of their scales, rounded up: the
// greatest norm of a row's error and of its quantised form, by all of its bits and by four.
struct RowBounds {
  float error = 0;
  float norm = 0;
  float rough_error = 0;
  float rough_norm = 0;
};

// Sums over one row's coordinates.
struct RowSums {
  double squares = 0;        // of its values
  double rough_squares = 0;  // of its rough values
  double difference = 0;     // of their differences, squared
};

// Sums of the rows of a packed block.
void sum_block(const int8_t* block, int64_t steps, RowSums (&sums)[kBlockRows], Isa isa);

// Writes the planes of a packed block; `low` may be null.
void split_block(const int8_t* block, int64_t steps, uint8_t* high, uint8_t* low);

// Puts `bytes` of the planes together again, into packed rows [2 * bytes] of an even number of
// steps: rough ones where `low` is null.
void merge_planes(const uint8_t* high, const uint8_t* low, int64_t bytes, int8_t* rows, Isa isa);

// Packs weight [rows, depth] as pack_rows() does, but into planes [block_count, pair_count, 16, 4].
// Without `low` the error is that of the rough rows.
void pack_planes(const float* weight, int64_t rows, int64_t depth, uint8_t* high, uint8_t* low,
                 float* scale, float* error, const Executor& executor);

}  // namespace qcompile

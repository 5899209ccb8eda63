// Dot products of the packed rows of a tile and quantised queries, in int32: the same for every
// instruction set.
#pragma once

#include <cstdint>

#include "core/isa.h"
#include "index/head.h"

namespace qcompile {

// Queries of one call.
struct DotQueries {
  const int8_t* values;  // from `stride` to the next; zeros up to 64 of them, beyond the depth
  int64_t stride;        // bytes, a multiple of 64
  int64_t count;
  int64_t steps;        // Head::steps()
  const int32_t* sums;  // [count], of each query's values
};

// Steps that a tile register reads at once.
inline constexpr int64_t kRegisterLines = 16;

// Queries that share a pass over a tile's rows at most. Arrays of queries and of their dot products
// have room for a multiple of kDotGroup of them.
inline constexpr int64_t kDotQueries = 64;
inline constexpr int64_t kDotGroup = 16;

// Arrays of rows and of dot products start at cache lines, which is what tile registers are loaded
// from and stored to.
struct alignas(64) RowLine {
  int8_t of[kStepBytes];
};
struct alignas(64) DotLine {
  int32_t of[kBlockRows];
};

// Computes products of kTileRows rows and all queries, into dots [count, kTileRows].
struct DotKernel {
  void (*enter)(const DotQueries& queries);  // before the first tile, on the same thread
  // rows: of a tile, merged, with room for a tile register to read beyond.
  void (*dots)(const int8_t* rows, const DotQueries& queries, int32_t* dots);
  // The same of a tile's rough rows.
  void (*rough_dots)(const uint8_t* rough, const DotQueries& queries, int32_t* dots);
  void (*leave)();  // after the last
};

// The kernel for `count` queries at a time.
const DotKernel& dot_kernel(Isa isa, int64_t count);

extern const DotKernel kDotScalar;
extern const DotKernel kDotAvx2;
extern const DotKernel kDotAvx512;
extern const DotKernel kDotAmx;

}  // namespace qcompile

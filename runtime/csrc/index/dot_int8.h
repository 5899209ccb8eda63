// Dot products of packed int8 rows and quantised queries, in int32: the same for every
// instruction set.
#pragma once

#include <cstdint>

#include "core/isa.h"
#include "index/head.h"

namespace qcompile {

// Rows and queries of one call.
struct DotTile {
  const int8_t* rows;           // `blocks` packed blocks
  const BlockFigures* figures;  // of those blocks
  int64_t blocks;
  int64_t steps;           // step_count(depth)
  const uint8_t* queries;  // encoded, 4 * steps bytes each
  int64_t stride;          // bytes from one query to the next
  int64_t count;
};

// Writes q.x of every row into dots [count, blocks * 16].
using DotKernel = void (*)(const DotTile& tile, int32_t* dots);

// The kernel for `count` queries at a time.
DotKernel dot_kernel(Isa isa, int64_t count);

void dot_int8_scalar(const DotTile& tile, int32_t* dots);
QC_AVX2 void dot_int8_avx2(const DotTile& tile, int32_t* dots);
QC_AVX512 void dot_int8_avx512(const DotTile& tile, int32_t* dots);
QC_AMX void dot_int8_amx(const DotTile& tile, int32_t* dots);

}  // namespace qcompile

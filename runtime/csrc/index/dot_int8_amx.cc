// AMX: sixteen queries times sixteen rows, 64 coordinates at a time. A packed block is a tile's
// right operand as it is. Where the depth is no multiple of 64, what a register reads beyond a
// block meets zeros of the queries.
#include <algorithm>

#include "core/intrinsics.h"
#include "index/dot_int8.h"

namespace qcompile {
namespace {

constexpr int64_t kRegisterSteps = 16;  // steps of four coordinates that one register holds
constexpr int64_t kOutStride = kTileRows * sizeof(int32_t);

// Shapes of the eight tile registers, in the processor's own layout.
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// 0 to 3: sums of two groups of queries and two blocks. 4 and 5: queries. 6 and 7: rows.
QC_AMX void enter(const DotQueries& queries) {
  TileConfig config;
  const int64_t together = std::min(kDotGroup, queries.count);
  // Fewer steps than a register holds are read alone: what follows a small block may be the end.
  const int64_t steps = std::min(kRegisterSteps, queries.steps);
  for (int tile = 0; tile < 8; ++tile) {
    const bool sums = tile < 4, of_queries = tile == 4 || tile == 5;
    config.rows[tile] = static_cast<uint8_t>(sums || of_queries ? together : steps);
    config.row_bytes[tile] = static_cast<uint16_t>(of_queries ? steps * kBlockDepth : kStepBytes);
  }
  // GCC takes the instruction to read eight bytes only, and would not store the others.
  asm volatile("" : : "r"(&config) : "memory");
  _tile_loadconfig(&config);
}

QC_AMX void leave() { _tile_release(); }

QC_AMX inline void one_group(const int8_t* rows, const int8_t* x, int64_t stride, int64_t steps,
                             int32_t* out) {
  const int8_t* next = rows + steps * kStepBytes;
  _tile_zero(0);
  _tile_zero(1);
  for (int64_t step = 0; step < steps; step += kRegisterSteps) {
    _tile_loadd(4, x + step * kBlockDepth, stride);
    _tile_loadd(6, rows + step * kStepBytes, kStepBytes);
    _tile_dpbssd(0, 4, 6);
    _tile_loadd(7, next + step * kStepBytes, kStepBytes);
    _tile_dpbssd(1, 4, 7);
  }
  _tile_stored(0, out, kOutStride);
  _tile_stored(1, out + kBlockRows, kOutStride);
}

QC_AMX inline void two_groups(const int8_t* rows, const int8_t* x, int64_t stride, int64_t steps,
                              int32_t* out) {
  const int8_t* next = rows + steps * kStepBytes;
  const int8_t* others = x + kDotGroup * stride;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t step = 0; step < steps; step += kRegisterSteps) {
    _tile_loadd(4, x + step * kBlockDepth, stride);
    _tile_loadd(6, rows + step * kStepBytes, kStepBytes);
    _tile_dpbssd(0, 4, 6);
    _tile_loadd(7, next + step * kStepBytes, kStepBytes);
    _tile_dpbssd(1, 4, 7);
    _tile_loadd(5, others + step * kBlockDepth, stride);
    _tile_dpbssd(2, 5, 6);
    _tile_dpbssd(3, 5, 7);
  }
  _tile_stored(0, out, kOutStride);
  _tile_stored(1, out + kBlockRows, kOutStride);
  _tile_stored(2, out + kDotGroup * kTileRows, kOutStride);
  _tile_stored(3, out + kDotGroup * kTileRows + kBlockRows, kOutStride);
}

QC_AMX void dots(const int8_t* packed, const DotQueries& queries, int32_t* dots) {
  const int64_t steps = queries.steps, stride = queries.stride;
  for (int64_t block = 0; block < kTileBlocks; block += 2) {
    const int8_t* rows = packed + block * steps * kStepBytes;
    int32_t* out = dots + block * kBlockRows;
    int64_t query = 0;
    for (; query + kDotGroup < queries.count; query += 2 * kDotGroup) {
      two_groups(rows, queries.values + query * stride, stride, steps, out + query * kTileRows);
    }
    if (query < queries.count) {
      one_group(rows, queries.values + query * stride, stride, steps, out + query * kTileRows);
    }
  }
}

}  // namespace

const DotKernel kDotAmx{enter, dots,
                        [](const uint8_t* rough, const DotQueries& queries, int32_t* dots) {
                          kDotAvx512.rough_dots(rough, queries, dots);
                        },
                        leave};

}  // namespace qcompile

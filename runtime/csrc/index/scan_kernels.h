// Kernels behind index/scan.h, one set for each instruction set. They round alike, operation by
// operation, so the sets return the same.
#pragma once

#include <cstdint>

#include "core/isa.h"
#include "index/head.h"
#include "index/query.h"

namespace qcompile {

// Blocks of 16 rows whose int32 dot products are kept at once, and queries that share them: both
// together fit the first-level cache.
inline constexpr int64_t kTileBlocks = 16;
inline constexpr int64_t kTileRows = kTileBlocks * kBlockRows;
inline constexpr int64_t kTileQueries = 16;

// For every block of a tile, a bit for each row that has to be looked at.
struct TileRowsKept {
  uint32_t bits[kTileBlocks];
};

// Intervals in which the final scores of a tile's rows lie; set for blocks that keep a row.
struct TileBounds {
  alignas(64) float lower[kTileRows];
  alignas(64) float upper[kTileRows];
};

struct ScanKernels {
  // Keeps rows whose upper bound is not below `least`; NaN is kept.
  void (*bounds)(const int32_t* dots, const BlockFigures* figures, int64_t blocks,
                 const Query& query, float least, TileBounds& bounds, TileRowsKept& kept);
  // Writes approximate scores [blocks * 16]; returns the greatest lower bound that is a number.
  float (*scores)(const int32_t* dots, const BlockFigures* figures, int64_t blocks,
                  const Query& query, float* scores);
  // Keeps rows whose upper bound, from their approximate scores, is not below `least`.
  void (*select)(const float* scores, const BlockFigures* figures, int64_t blocks,
                 const Query& query, float least, TileRowsKept& kept);
};

extern const ScanKernels kScanScalar;
extern const ScanKernels kScanAvx2;
extern const ScanKernels kScanAvx512;

// Share of a score and its bound by which a margin is widened for rounding; see index/query.h.
inline constexpr float kRounding = 0x1p-21f;

}  // namespace qcompile

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
inline constexpr int64_t kTileQueries = 32;
// Blocks whose rows share a peak, lane by lane.
inline constexpr int64_t kPeakBlocks = 4;
inline constexpr int64_t kTilePeaks = kTileRows / kPeakBlocks;
static_assert(kTilePeaks == 64, "one bit of a word for each");

// Dot products of one query with the rows of up to kTileBlocks blocks.
struct ScoreTile {
  const int32_t* dots;
  const BlockFigures* figures;
  int64_t blocks;
  float query_scale;
};

struct ScanKernels {
  // For each block, the bits of the rows whose score is not below bars[block]; NaN is not.
  void (*reach)(const ScoreTile& tile, const float* bars, uint32_t* bits);
  // For each lane of each kPeakBlocks blocks, the greatest of score - widths[block], or minus
  // infinity, into peaks [kTilePeaks].
  void (*low_peaks)(const ScoreTile& tile, const float* widths, float* peaks);
  // Writes scores [blocks * 16], and into peaks the greatest of score + widths[block]. Returns the
  // greatest of score - widths[block].
  float (*scores)(const ScoreTile& tile, const float* widths, float* scores, float* peaks);
  // Bits of the peaks [kTilePeaks] that are not below `bar`.
  uint64_t (*peaks_reach)(const float* peaks, float bar);
};

extern const ScanKernels kScanScalar;
extern const ScanKernels kScanAvx2;
extern const ScanKernels kScanAvx512;

}  // namespace qcompile

// Kernels behind index/scan.h, one set for each instruction set.
#pragma once

#include <cstdint>

#include "core/isa.h"
#include "index/head.h"
#include "index/query.h"

namespace qcompile {

// Dot products of one query with the rows of a tile; see index/query.h.
struct TileDots {
  const int32_t* dots;  // [kTileRows]
  float scale;          // the query's
  float width;
};

// The same of several queries.
struct GroupDots {
  const int32_t* dots;  // [count, kTileRows]
  const float* scales;  // [count]
  const float* widths;  // [count]
  int64_t count;        // 64 at most
};

struct ScanKernels {
  // Writes, for each query, the bits of the rows whose upper bound is not below its bar; NaN is
  // not. Returns the bits of the queries that have any.
  uint64_t (*reach)(const Tile& tile, const GroupDots& group, const float* bars, uint64_t* rows);
  // Writes approximate scores [kTileRows], and into peaks [kBlockRows], for each lane, the greatest
  // upper bound of its blocks. Returns the greatest lower bound. NaN is passed over. The same for
  // every instruction set.
  float (*scores)(const Tile& tile, const TileDots& query, float* scores, float* peaks);
};

const ScanKernels& scan_kernels(Isa isa);

extern const ScanKernels kScanScalar;
extern const ScanKernels kScanAvx2;
extern const ScanKernels kScanAvx512;

}  // namespace qcompile

// Quantised queries, tile by tile.
#pragma once

#include <cstdint>
#include <iterator>
#include <vector>

#include "core/isa.h"
#include "index/dot_int8.h"
#include "index/head.h"
#include "index/query.h"
#include "index/scan_kernels.h"

namespace qcompile {

// Work (rows * depth * queries) that is worth waking another thread for.
inline constexpr int64_t kParallelWork = int64_t{1} << 21;

// Encoded hidden vectors of one group of queries.
class QueryGroup {
 public:
  void encode(const Head& head, const float* hidden, int64_t count, Isa isa);
  int64_t size() const { return std::ssize(queries_); }
  const Query& operator[](int64_t index) const { return queries_[static_cast<size_t>(index)]; }
  // As kernels take them: queries first..first+count-1, and the scale of each.
  DotQueries dots(int64_t first, int64_t count) const;
  const float* scales(int64_t first) const { return scales_.data() + first; }

 private:
  // Queries start at cache lines: tile registers are loaded line by line.
  struct alignas(64) Line {
    int8_t bytes[64];
  };
  int64_t steps_ = 0;
  int64_t lines_ = 0;  // of one query
  std::vector<Query> queries_;
  std::vector<int32_t> sums_;
  std::vector<float> scales_;
  std::vector<Line> values_;
};

// How far a query's approximate scores of a tile may be off, in units of the rows' scales.
inline float tile_width(const Tile& tile, const Query& query) {
  return query.width(tile.bounds.error, tile.bounds.norm);
}

}  // namespace qcompile

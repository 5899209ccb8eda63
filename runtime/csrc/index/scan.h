// Tiles of the int8 scan: approximate scores with their error margins.
#pragma once

#include <cstdint>
#include <vector>

#include "core/isa.h"
#include "index/collector.h"
#include "index/head.h"
#include "index/query.h"
#include "index/scan_kernels.h"

namespace qcompile {

// Work (rows * depth * queries) that is worth waking another thread for.
inline constexpr int64_t kParallelWork = int64_t{1} << 22;

// Encoded hidden vectors of one group of queries.
class QueryGroup {
 public:
  void encode(const Head& head, const float* hidden, int64_t count);
  int64_t size() const { return static_cast<int64_t>(queries_.size()); }
  const Query& operator[](int64_t index) const { return queries_[static_cast<size_t>(index)]; }
  const uint8_t* values(int64_t index) const { return values_.data() + index * width_; }

 private:
  int64_t width_ = 0;
  std::vector<Query> queries_;
  std::vector<uint8_t> values_;
};

// The range of rows that one tile covers.
struct TileRows {
  int64_t first_block;
  int64_t blocks;
};

// Dot products of the tile's rows with queries first..first+count-1 into dots [count, rows].
void tile_dots(const Head& head, const TileRows& tile, const QueryGroup& group, int64_t first,
               int64_t count, int32_t* dots, Isa isa);

// Offers the tile's rows that may reach the threshold to the collector.
void collect_tile(const Head& head, const TileRows& tile, const int32_t* dots, const Query& query,
                  const Threshold& threshold, Collector& collector, Isa isa);

// Writes the tile's approximate scores to scores, one for each row that exists, and returns the
// greatest lower bound of a score; minus infinity where there is none.
float score_tile(const Head& head, const TileRows& tile, const int32_t* dots, const Query& query,
                 float* scores, Isa isa);

// Appends to `chosen` the tile's rows whose approximate score, in scores, may stand for one that
// reaches `least`.
void select_rows(const Head& head, const Query& query, const float* scores, const TileRows& tile,
                 float least, std::vector<int32_t>& chosen, Isa isa);

}  // namespace qcompile

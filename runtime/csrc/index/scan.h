// Tiles of the int8 scan: approximate scores with their error margins.
#pragma once

#include <cstdint>
#include <iterator>
#include <vector>

#include "core/isa.h"
#include "index/collector.h"
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
  const uint8_t* values(int64_t index) const { return values_[index * lines_].bytes; }
  int64_t stride() const { return lines_ * sizeof(Line); }

 private:
  // Queries start at cache lines: tile registers are loaded line by line.
  struct alignas(64) Line {
    uint8_t bytes[64];
  };
  int64_t lines_ = 0;  // of one query
  std::vector<Query> queries_;
  std::vector<Line> values_;
};

// Rows [first, first + rows) of a layer, blocks [block, block + blocks).
struct TileRows {
  TileRows(const Head& head, int64_t tile);
  int64_t block;
  int64_t blocks;
  int64_t first;
  int64_t rows;
};

int64_t tile_count(const Head& head);

// Dot products of the tile's rows with queries first..first+count-1 into dots [count,
// tile.blocks * 16].
void tile_dots(const Head& head, const TileRows& tile, const QueryGroup& group, int64_t first,
               int64_t count, int32_t* dots, Isa isa);

// Offers the tile's rows that may reach the collector's threshold to it.
void collect_tile(const Head& head, const TileRows& tile, const int32_t* dots, const Query& query,
                  Collector& collector, Isa isa);

// What a tile's approximate scores say of its final ones.
struct TilePeaks {
  float upper[kTilePeaks];  // score + width, the greatest of each lane of kPeakBlocks blocks
  float width;              // the greatest
  float least;              // some row's final score is at least this
};

// Writes the tile's approximate scores to scores [tile.rows].
void score_tile(const Head& head, const TileRows& tile, const int32_t* dots, const Query& query,
                float* scores, TilePeaks& peaks, Isa isa);

// Appends to `chosen` the tile's rows whose final score may reach `least`.
void select_rows(const Head& head, const TileRows& tile, const float* scores,
                 const TilePeaks& peaks, const Query& query, float least,
                 std::vector<int32_t>& chosen, Isa isa);

// How far final scores may be from approximate ones, but for 2^-21 of the score: widths
// [kTileBlocks], one for each block.
void tile_widths(const Head& head, const TileRows& tile, const Query& query, float* widths);

}  // namespace qcompile

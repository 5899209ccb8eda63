#include "index/scan.h"

#include <algorithm>
#include <bit>

#include "index/dot_int8.h"

namespace qcompile {
namespace {

const ScanKernels& kernels(Isa isa) {
  if (isa == Isa::kScalar) return kScanScalar;
  return isa == Isa::kAvx2 ? kScanAvx2 : kScanAvx512;
}

// Raises an unset threshold: every peak is a lower bound of another row's score.
void seed(const ScoreTile& tile, const float* widths, Collector& collector, Isa isa) {
  float peaks[kTilePeaks];
  kernels(isa).low_peaks(tile, widths, peaks);
  const float width = *std::max_element(widths, widths + tile.blocks);
  for (float& peak : peaks) peak = known_lower(peak - slack(peak, width));
  collector.seed(peaks, kTilePeaks);
}

}  // namespace

void QueryGroup::encode(const Head& head, const float* hidden, int64_t count, Isa isa) {
  width_ = step_count(head.depth()) * kBlockDepth;
  queries_.resize(static_cast<size_t>(count));
  values_.resize(static_cast<size_t>(count * width_));
  for (int64_t i = 0; i < count; ++i) {
    queries_[static_cast<size_t>(i)] =
        qcompile::encode(hidden + i * head.depth(), head.depth(), values_.data() + i * width_, isa);
  }
}

TileRows::TileRows(const Head& head, int64_t tile)
    : block(tile * kTileBlocks),
      blocks(std::min(kTileBlocks, block_count(head.rows()) - block)),
      first(block * kBlockRows),
      rows(std::min(blocks * kBlockRows, head.rows() - first)) {}

int64_t tile_count(const Head& head) { return ceil_div(block_count(head.rows()), kTileBlocks); }

void tile_dots(const Head& head, const TileRows& tile, const QueryGroup& group, int64_t first,
               int64_t count, int32_t* dots, Isa isa) {
  const DotTile work{head.block(tile.block),   head.figures(tile.block), tile.blocks,
                     step_count(head.depth()), group.values(first),      count};
  dot_kernel(isa, count)(work, dots);
}

void tile_widths(const Head& head, const TileRows& tile, const Query& query, float* widths) {
  for (int64_t b = 0; b < tile.blocks; ++b) {
    widths[b] = query.width(head.block_error(tile.block + b), head.block_norm(tile.block + b));
  }
}

void collect_tile(const Head& head, const TileRows& tile, const int32_t* dots, const Query& query,
                  Collector& collector, Isa isa) {
  const ScoreTile work{dots, head.figures(tile.block), tile.blocks, query.scale};
  float widths[kTileBlocks], bars[kTileBlocks];
  tile_widths(head, tile, query, widths);
  if (collector.unset()) seed(work, widths, collector, isa);
  const float least = collector.threshold();
  for (int64_t b = 0; b < tile.blocks; ++b) {
    bars[b] = least - widths[b] - slack(least, widths[b]);
  }
  uint32_t bits[kTileBlocks];
  kernels(isa).reach(work, bars, bits);
  for (int64_t b = 0; b < tile.blocks; ++b) {
    const BlockFigures& figures = work.figures[b];
    for (; bits[b] != 0; bits[b] &= bits[b] - 1) {
      const int lane = std::countr_zero(bits[b]);
      const int64_t row = b * kBlockRows + lane;
      if (row >= tile.rows) break;
      const float score = approximate(dots[row], figures, lane, query.scale);
      const float width = margin(score, figures, lane, query);
      if (score + width < least) continue;
      collector.add(score - width, score + width, static_cast<int32_t>(tile.first + row));
    }
  }
}

void score_tile(const Head& head, const TileRows& tile, const int32_t* dots, const Query& query,
                float* scores, TilePeaks& peaks, Isa isa) {
  const ScoreTile work{dots, head.figures(tile.block), tile.blocks, query.scale};
  float widths[kTileBlocks];
  tile_widths(head, tile, query, widths);
  float padded[kTileRows];  // for the last tile, of which some rows may not exist
  float* target = tile.rows == tile.blocks * kBlockRows ? scores : padded;
  const float best = kernels(isa).scores(work, widths, target, peaks.upper);
  if (target == padded) std::copy_n(padded, tile.rows, scores);
  peaks.width = *std::max_element(widths, widths + tile.blocks);
  peaks.least = known_lower(best - slack(best, peaks.width));
}

void select_rows(const Head& head, const TileRows& tile, const float* scores,
                 const TilePeaks& peaks, const Query& query, float least,
                 std::vector<int32_t>& chosen) {
  const float bar = least - slack(least, peaks.width);
  for (int64_t i = 0; i < kTilePeaks; ++i) {
    if (peaks.upper[i] < bar) continue;
    const int lane = static_cast<int>(i % kBlockRows);
    for (int64_t b = i / kBlockRows * kPeakBlocks; b < tile.blocks; ++b) {
      if (b >= (i / kBlockRows + 1) * kPeakBlocks) break;
      const int64_t row = b * kBlockRows + lane;
      if (row >= tile.rows) break;
      const BlockFigures& figures = *head.figures(tile.block + b);
      if (scores[row] + margin(scores[row], figures, lane, query) < least) continue;
      chosen.push_back(static_cast<int32_t>(tile.first + row));
    }
  }
}

}  // namespace qcompile

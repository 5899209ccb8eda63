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
  lines_ = ceil_div(step_count(head.depth()) * kBlockDepth, sizeof(Line));
  queries_.resize(static_cast<size_t>(count));
  values_.resize(static_cast<size_t>(count * lines_));
  for (int64_t i = 0; i < count; ++i) {
    queries_[i] =
        qcompile::encode(hidden + i * head.depth(), head.depth(), values_[i * lines_].bytes, isa);
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
  const DotTile work{
      head.block(tile.block), head.figures(tile.block), tile.blocks, step_count(head.depth()),
      group.values(first),    group.stride(),           count};
  dot_kernel(isa, count)(work, dots);
}

void tile_widths(const Head& head, const TileRows& tile, const Query& query, float* widths) {
  const float* errors = head.block_errors(tile.block);
  const float* norms = head.block_norms(tile.block);
  for (int64_t b = 0; b < kTileBlocks; ++b) widths[b] = query.width(errors[b], norms[b]);
}

void collect_tile(const Head& head, const TileRows& tile, const int32_t* dots, const Query& query,
                  Collector& collector, Isa isa) {
  const ScoreTile work{dots, head.figures(tile.block), tile.blocks, query.scale};
  float widths[kTileBlocks], bars[kTileBlocks];
  tile_widths(head, tile, query, widths);
  if (collector.unset()) seed(work, widths, collector, isa);
  const float least = collector.threshold();
  for (int64_t b = 0; b < kTileBlocks; ++b) {
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
                 std::vector<int32_t>& chosen, Isa isa) {
  const float bar = least - slack(least, peaks.width);
  for (uint64_t bits = kernels(isa).peaks_reach(peaks.upper, bar); bits != 0; bits &= bits - 1) {
    const int peak = std::countr_zero(bits), lane = peak % kBlockRows;
    const int64_t first = peak / kBlockRows * kPeakBlocks;
    for (int64_t b = first; b < std::min(first + kPeakBlocks, tile.blocks); ++b) {
      const int64_t row = b * kBlockRows + lane;
      if (row >= tile.rows) break;
      const BlockFigures& figures = *head.figures(tile.block + b);
      if (scores[row] + margin(scores[row], figures, lane, query) < least) continue;
      chosen.push_back(static_cast<int32_t>(tile.first + row));
    }
  }
}

}  // namespace qcompile

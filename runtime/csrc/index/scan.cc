#include "index/scan.h"

#include <algorithm>
#include <bit>

#include "index/dot_int8.h"

namespace qcompile {
namespace {

const ScanKernels& kernels(Isa isa) {
  if (isa == Isa::kAvx512) return kScanAvx512;
  return isa == Isa::kAvx2 ? kScanAvx2 : kScanScalar;
}

}  // namespace

void QueryGroup::encode(const Head& head, const float* hidden, int64_t count) {
  width_ = step_count(head.depth()) * kBlockDepth;
  queries_.resize(static_cast<size_t>(count));
  values_.resize(static_cast<size_t>(count * width_));
  for (int64_t i = 0; i < count; ++i) {
    queries_[static_cast<size_t>(i)] =
        qcompile::encode(hidden + i * head.depth(), head.depth(), values_.data() + i * width_);
  }
}

void tile_dots(const Head& head, const TileRows& tile, const QueryGroup& group, int64_t first,
               int64_t count, int32_t* dots, Isa isa) {
  const DotTile work{head.block(tile.first_block),
                     head.figures(tile.first_block),
                     tile.blocks,
                     step_count(head.depth()),
                     group.values(first),
                     count};
  dot_kernel(isa)(work, dots);
}

void collect_tile(const Head& head, const TileRows& tile, const int32_t* dots, const Query& query,
                  const Threshold& threshold, Collector& collector, Isa isa) {
  TileBounds bounds;
  TileRowsKept kept;
  const float least = threshold.get();
  kernels(isa).bounds(dots, head.figures(tile.first_block), tile.blocks, query, least, bounds,
                      kept);
  const int64_t first = tile.first_block * kBlockRows;
  for (int64_t b = 0; b < tile.blocks; ++b) {
    for (uint32_t bits = kept.bits[b]; bits != 0; bits &= bits - 1) {
      const int64_t i = b * kBlockRows + std::countr_zero(bits);
      if (first + i >= head.rows()) break;
      collector.add(bounds.lower[i], bounds.upper[i], static_cast<int32_t>(first + i));
    }
  }
}

float score_tile(const Head& head, const TileRows& tile, const int32_t* dots, const Query& query,
                 float* scores, Isa isa) {
  const BlockFigures* figures = head.figures(tile.first_block);
  const int64_t there = head.rows() - tile.first_block * kBlockRows;
  const int64_t whole = std::min(tile.blocks, there / kBlockRows);
  float best = kernels(isa).scores(dots, figures, whole, query, scores);
  if (whole < tile.blocks) {  // the last block of all, of which some rows do not exist
    float last[kBlockRows];
    const float lower = kernels(isa).scores(dots + whole * kBlockRows, figures + whole,
                                            tile.blocks - whole, query, last);
    best = std::max(best, lower);
    std::copy_n(last, there - whole * kBlockRows, scores + whole * kBlockRows);
  }
  return best;
}

void select_rows(const Head& head, const Query& query, const float* scores, const TileRows& tile,
                 float least, std::vector<int32_t>& chosen, Isa isa) {
  const int64_t first = tile.first_block * kBlockRows;
  const int64_t there = std::min(head.rows() - first, tile.blocks * kBlockRows);
  const BlockFigures* figures = head.figures(tile.first_block);
  const int64_t whole = there / kBlockRows;
  TileRowsKept kept;
  kernels(isa).select(scores, figures, whole, query, least, kept);
  if (whole < tile.blocks) {
    float last[kBlockRows] = {};
    std::copy_n(scores + whole * kBlockRows, there - whole * kBlockRows, last);
    TileRowsKept one;
    kernels(isa).select(last, figures + whole, 1, query, least, one);
    kept.bits[whole] = one.bits[0] & ((1u << (there - whole * kBlockRows)) - 1);
  }
  for (int64_t b = 0; b < tile.blocks; ++b) {
    for (uint32_t bits = kept.bits[b]; bits != 0; bits &= bits - 1) {
      chosen.push_back(static_cast<int32_t>(first + b * kBlockRows + std::countr_zero(bits)));
    }
  }
}

}  // namespace qcompile

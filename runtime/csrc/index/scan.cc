#include "index/scan.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "index/dot_int8.h"

namespace qcompile {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Distance from an approximate score within which the final one lies; index/query.h derives it.
QC_INLINE float margin(const BlockFigures& figures, int lane, const Query& query, float score) {
  const float bound = figures.error[lane] * query.norm + figures.norm[lane] * query.error;
  return bound + 0x1p-21f * (std::fabs(score) + bound) + query.underflow;
}

// Approximate scores of a block with their margins.
struct BlockScores {
  float score[kBlockRows];
  float margin[kBlockRows];
};

QC_INLINE void score_block(const int32_t* dots, const BlockFigures& figures, const Query& query,
                           BlockScores& out) {
  for (int lane = 0; lane < kBlockRows; ++lane) {
    const float score =
        static_cast<float>(dots[lane]) * (figures.scale[lane] * query.scale) + figures.bias[lane];
    out.score[lane] = score;
    out.margin[lane] = margin(figures, lane, query, score);
  }
}

QC_INLINE void collect(const Head& head, const TileRows& tile, const int32_t* dots,
                       const Query& query, const Threshold& threshold, Collector& collector) {
  const float least = threshold.get();
  const auto rows = static_cast<int32_t>(head.rows());
  for (int64_t b = 0; b < tile.blocks; ++b) {
    BlockScores block;
    score_block(dots + b * kBlockRows, *head.figures(tile.first_block + b), query, block);
    float lower[kBlockRows], upper[kBlockRows];
    int any = 0;
    for (int lane = 0; lane < kBlockRows; ++lane) {
      lower[lane] = block.score[lane] - block.margin[lane];
      upper[lane] = block.score[lane] + block.margin[lane];
      any |= upper[lane] < least ? 0 : 1;  // NaN stays in
    }
    if (any == 0) continue;
    const auto first = static_cast<int32_t>((tile.first_block + b) * kBlockRows);
    for (int lane = 0; lane < kBlockRows; ++lane) {
      if (first + lane < rows && !(upper[lane] < least)) {
        collector.add(lower[lane], upper[lane], first + lane);
      }
    }
  }
}

QC_INLINE float score(const Head& head, const TileRows& tile, const int32_t* dots,
                      const Query& query, float* scores) {
  float best[kBlockRows];
  for (float& lane : best) lane = -kInfinity;
  for (int64_t b = 0; b < tile.blocks; ++b) {
    BlockScores block;
    score_block(dots + b * kBlockRows, *head.figures(tile.first_block + b), query, block);
    const int64_t first = b * kBlockRows;
    const int64_t there =
        std::min<int64_t>(kBlockRows, head.rows() - tile.first_block * kBlockRows - first);
    for (int lane = 0; lane < kBlockRows; ++lane) {
      const float lower = block.score[lane] - block.margin[lane];
      best[lane] = lower > best[lane] ? lower : best[lane];  // NaN stays out
    }
    if (there == kBlockRows) {
      for (int lane = 0; lane < kBlockRows; ++lane) scores[first + lane] = block.score[lane];
    } else {
      for (int lane = 0; lane < there; ++lane) scores[first + lane] = block.score[lane];
    }
  }
  return *std::ranges::max_element(best);
}

QC_INLINE void select(const Head& head, const Query& query, const float* scores, int64_t begin,
                      int64_t end, float least, std::vector<int32_t>& chosen) {
  for (int64_t first = begin; first < end; first += kBlockRows) {
    const BlockFigures& figures = *head.figures(first / kBlockRows);
    const int64_t there = std::min<int64_t>(kBlockRows, end - first);
    float score[kBlockRows] = {};
    if (there == kBlockRows) {
      for (int lane = 0; lane < kBlockRows; ++lane) score[lane] = scores[first + lane];
    } else {
      for (int lane = 0; lane < there; ++lane) score[lane] = scores[first + lane];
    }
    float upper[kBlockRows];
    int any = 0;
    for (int lane = 0; lane < kBlockRows; ++lane) {
      upper[lane] = score[lane] + margin(figures, lane, query, score[lane]);
      any |= upper[lane] < least ? 0 : 1;  // NaN stays in
    }
    if (any == 0) continue;
    for (int lane = 0; lane < there; ++lane) {
      if (!(upper[lane] < least)) chosen.push_back(static_cast<int32_t>(first + lane));
    }
  }
}

// One copy of each body for every instruction set.
void collect_scalar(const Head& h, const TileRows& t, const int32_t* d, const Query& q,
                    const Threshold& least, Collector& c) {
  collect(h, t, d, q, least, c);
}
QC_AVX2 void collect_avx2(const Head& h, const TileRows& t, const int32_t* d, const Query& q,
                          const Threshold& least, Collector& c) {
  collect(h, t, d, q, least, c);
}
QC_AVX512 void collect_avx512(const Head& h, const TileRows& t, const int32_t* d, const Query& q,
                              const Threshold& least, Collector& c) {
  collect(h, t, d, q, least, c);
}
float score_scalar(const Head& h, const TileRows& t, const int32_t* d, const Query& q, float* out) {
  return score(h, t, d, q, out);
}
QC_AVX2 float score_avx2(const Head& h, const TileRows& t, const int32_t* d, const Query& q,
                         float* out) {
  return score(h, t, d, q, out);
}
QC_AVX512 float score_avx512(const Head& h, const TileRows& t, const int32_t* d, const Query& q,
                             float* out) {
  return score(h, t, d, q, out);
}
void select_scalar(const Head& h, const Query& q, const float* s, int64_t begin, int64_t end,
                   float least, std::vector<int32_t>& out) {
  select(h, q, s, begin, end, least, out);
}
QC_AVX2 void select_avx2(const Head& h, const Query& q, const float* s, int64_t begin, int64_t end,
                         float least, std::vector<int32_t>& out) {
  select(h, q, s, begin, end, least, out);
}
QC_AVX512 void select_avx512(const Head& h, const Query& q, const float* s, int64_t begin,
                             int64_t end, float least, std::vector<int32_t>& out) {
  select(h, q, s, begin, end, least, out);
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
  if (isa == Isa::kAvx512) return collect_avx512(head, tile, dots, query, threshold, collector);
  if (isa == Isa::kAvx2) return collect_avx2(head, tile, dots, query, threshold, collector);
  collect_scalar(head, tile, dots, query, threshold, collector);
}

float score_tile(const Head& head, const TileRows& tile, const int32_t* dots, const Query& query,
                 float* scores, Isa isa) {
  if (isa == Isa::kAvx512) return score_avx512(head, tile, dots, query, scores);
  if (isa == Isa::kAvx2) return score_avx2(head, tile, dots, query, scores);
  return score_scalar(head, tile, dots, query, scores);
}

void select_rows(const Head& head, const Query& query, const float* scores, int64_t begin,
                 int64_t end, float least, std::vector<int32_t>& chosen, Isa isa) {
  if (isa == Isa::kAvx512) {
    return select_avx512(head, query, scores, begin, end, least, chosen);
  }
  if (isa == Isa::kAvx2) return select_avx2(head, query, scores, begin, end, least, chosen);
  select_scalar(head, query, scores, begin, end, least, chosen);
}

}  // namespace qcompile

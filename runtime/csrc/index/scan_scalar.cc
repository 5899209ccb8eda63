#include <cmath>
#include <limits>

#include "index/scan_kernels.h"

namespace qcompile {
namespace {

float approximate(int32_t dot, const BlockFigures& figures, int lane, const Query& query) {
  return static_cast<float>(dot) * (figures.scale[lane] * query.scale) + figures.bias[lane];
}

float margin(float score, const BlockFigures& figures, int lane, const Query& query) {
  const float bound = figures.error[lane] * query.norm + figures.norm[lane] * query.error;
  return (bound + kRounding * (std::fabs(score) + bound)) + query.underflow;
}

void bounds(const int32_t* dots, const BlockFigures* figures, int64_t blocks, const Query& query,
            float least, TileBounds& bounds, TileRowsKept& kept) {
  for (int64_t b = 0; b < blocks; ++b) {
    kept.bits[b] = 0;
    for (int lane = 0; lane < kBlockRows; ++lane) {
      const int64_t i = b * kBlockRows + lane;
      const float score = approximate(dots[i], figures[b], lane, query);
      const float width = margin(score, figures[b], lane, query);
      bounds.lower[i] = score - width;
      bounds.upper[i] = score + width;
      if (!(bounds.upper[i] < least)) kept.bits[b] |= 1u << lane;
    }
  }
}

float scores(const int32_t* dots, const BlockFigures* figures, int64_t blocks, const Query& query,
             float* scores) {
  float best = -std::numeric_limits<float>::infinity();
  for (int64_t b = 0; b < blocks; ++b) {
    for (int lane = 0; lane < kBlockRows; ++lane) {
      const float score = approximate(dots[b * kBlockRows + lane], figures[b], lane, query);
      const float lower = score - margin(score, figures[b], lane, query);
      best = lower > best ? lower : best;
      scores[b * kBlockRows + lane] = score;
    }
  }
  return best;
}

void select(const float* scores, const BlockFigures* figures, int64_t blocks, const Query& query,
            float least, TileRowsKept& kept) {
  for (int64_t b = 0; b < blocks; ++b) {
    kept.bits[b] = 0;
    for (int lane = 0; lane < kBlockRows; ++lane) {
      const float score = scores[b * kBlockRows + lane];
      const float upper = score + margin(score, figures[b], lane, query);
      if (!(upper < least)) kept.bits[b] |= 1u << lane;
    }
  }
}

}  // namespace

const ScanKernels kScanScalar{bounds, scores, select};

}  // namespace qcompile

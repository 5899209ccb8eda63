#include <algorithm>
#include <limits>

#include "index/scan_kernels.h"

namespace qcompile {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

void reach(const ScoreTile& tile, const float* bars, uint32_t* bits) {
  for (int64_t b = 0; b < tile.blocks; ++b) {
    bits[b] = 0;
    for (int lane = 0; lane < kBlockRows; ++lane) {
      const float score =
          approximate(tile.dots[b * kBlockRows + lane], tile.figures[b], lane, tile.query_scale);
      if (!(score < bars[b])) bits[b] |= 1u << lane;
    }
  }
}

// NaN is passed over.
float greater(float value, float best) { return value > best ? value : best; }

void low_peaks(const ScoreTile& tile, const float* widths, float* peaks) {
  std::fill_n(peaks, kTilePeaks, -kInfinity);
  for (int64_t b = 0; b < tile.blocks; ++b) {
    for (int lane = 0; lane < kBlockRows; ++lane) {
      const float score =
          approximate(tile.dots[b * kBlockRows + lane], tile.figures[b], lane, tile.query_scale);
      float& peak = peaks[b / kPeakBlocks * kBlockRows + lane];
      peak = greater(score - widths[b], peak);
    }
  }
}

float scores(const ScoreTile& tile, const float* widths, float* scores, float* peaks) {
  float best = -kInfinity;
  std::fill_n(peaks, kTilePeaks, -kInfinity);
  for (int64_t b = 0; b < tile.blocks; ++b) {
    for (int lane = 0; lane < kBlockRows; ++lane) {
      const int64_t row = b * kBlockRows + lane;
      const float score = approximate(tile.dots[row], tile.figures[b], lane, tile.query_scale);
      float& peak = peaks[b / kPeakBlocks * kBlockRows + lane];
      peak = greater(score + widths[b], peak);
      best = greater(score - widths[b], best);
      scores[row] = score;
    }
  }
  return best;
}

uint64_t peaks_reach(const float* peaks, float bar) {
  uint64_t bits = 0;
  for (int64_t i = 0; i < kTilePeaks; ++i) bits |= uint64_t{!(peaks[i] < bar)} << i;
  return bits;
}

}  // namespace

const ScanKernels kScanScalar{reach, low_peaks, scores, peaks_reach};

}  // namespace qcompile

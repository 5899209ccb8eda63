#include <limits>

#include "core/intrinsics.h"
#include "index/scan_kernels.h"

namespace qcompile {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int kWidth = 8;

// Scores of lanes at..at+7 of block b.
QC_AVX2 inline __m256 approximate(const ScoreTile& tile, int64_t b, int at, __m256 query_scale) {
  const BlockFigures& figures = tile.figures[b];
  const auto* dots = reinterpret_cast<const __m256i*>(tile.dots + b * kBlockRows + at);
  const __m256 scale = _mm256_mul_ps(_mm256_load_ps(figures.scale + at), query_scale);
  const __m256 product = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_loadu_si256(dots)), scale);
  return _mm256_add_ps(product, _mm256_load_ps(figures.bias + at));
}

QC_AVX2 void reach(const ScoreTile& tile, const float* bars, uint32_t* bits) {
  const __m256 scale = _mm256_set1_ps(tile.query_scale);
  for (int64_t b = 0; b < tile.blocks; ++b) {
    const __m256 bar = _mm256_set1_ps(bars[b]);
    bits[b] = 0;
    for (int at = 0; at < kBlockRows; at += kWidth) {
      const __m256 kept = _mm256_cmp_ps(approximate(tile, b, at, scale), bar, _CMP_NLT_UQ);
      bits[b] |= static_cast<uint32_t>(_mm256_movemask_ps(kept)) << at;
    }
  }
}

// max_ps returns its second operand if the first is NaN: NaN is passed over.
QC_AVX2 void low_peaks(const ScoreTile& tile, const float* widths, float* peaks) {
  const __m256 scale = _mm256_set1_ps(tile.query_scale);
  for (int64_t i = 0; i < kTilePeaks; i += kWidth) {
    _mm256_storeu_ps(peaks + i, _mm256_set1_ps(-kInfinity));
  }
  for (int64_t b = 0; b < tile.blocks; ++b) {
    for (int at = 0; at < kBlockRows; at += kWidth) {
      float* peak = peaks + b / kPeakBlocks * kBlockRows + at;
      const __m256 low = _mm256_sub_ps(approximate(tile, b, at, scale), _mm256_set1_ps(widths[b]));
      _mm256_storeu_ps(peak, _mm256_max_ps(low, _mm256_loadu_ps(peak)));
    }
  }
}

QC_AVX2 float scores(const ScoreTile& tile, const float* widths, float* scores, float* peaks) {
  const __m256 scale = _mm256_set1_ps(tile.query_scale);
  __m256 best = _mm256_set1_ps(-kInfinity);
  for (int64_t i = 0; i < kTilePeaks; i += kWidth) _mm256_storeu_ps(peaks + i, best);
  for (int64_t b = 0; b < tile.blocks; ++b) {
    const __m256 width = _mm256_set1_ps(widths[b]);
    for (int at = 0; at < kBlockRows; at += kWidth) {
      const __m256 score = approximate(tile, b, at, scale);
      float* peak = peaks + b / kPeakBlocks * kBlockRows + at;
      const __m256 high = _mm256_max_ps(_mm256_add_ps(score, width), _mm256_loadu_ps(peak));
      best = _mm256_max_ps(_mm256_sub_ps(score, width), best);
      _mm256_storeu_ps(peak, high);
      _mm256_storeu_ps(scores + b * kBlockRows + at, score);
    }
  }
  float lanes[kWidth];
  _mm256_storeu_ps(lanes, best);
  float result = lanes[0];
  for (float lane : lanes) result = lane > result ? lane : result;
  return result;
}

QC_AVX2 uint64_t peaks_reach(const float* peaks, float bar) {
  uint64_t bits = 0;
  for (int64_t i = 0; i < kTilePeaks; i += kWidth) {
    const __m256 kept = _mm256_cmp_ps(_mm256_loadu_ps(peaks + i), _mm256_set1_ps(bar), _CMP_NLT_UQ);
    bits |= static_cast<uint64_t>(_mm256_movemask_ps(kept)) << i;
  }
  return bits;
}

}  // namespace

const ScanKernels kScanAvx2{reach, low_peaks, scores, peaks_reach};

}  // namespace qcompile

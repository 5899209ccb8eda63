#include <algorithm>
#include <limits>

#include "core/intrinsics.h"
#include "index/scan_kernels.h"

namespace qcompile {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

QC_AVX512 inline __m512 approximate(const ScoreTile& tile, int64_t b, __m512 query_scale) {
  const BlockFigures& figures = tile.figures[b];
  const __m512 scale = _mm512_mul_ps(_mm512_load_ps(figures.scale), query_scale);
  const __m512 dots = _mm512_cvtepi32_ps(_mm512_loadu_si512(tile.dots + b * kBlockRows));
  return _mm512_add_ps(_mm512_mul_ps(dots, scale), _mm512_load_ps(figures.bias));
}

QC_AVX512 void reach(const ScoreTile& tile, const float* bars, uint32_t* bits) {
  const __m512 scale = _mm512_set1_ps(tile.query_scale);
  for (int64_t b = 0; b < tile.blocks; ++b) {
    bits[b] = _mm512_cmp_ps_mask(approximate(tile, b, scale), _mm512_set1_ps(bars[b]), _CMP_NLT_UQ);
  }
}

// max_ps returns its second operand if the first is NaN: NaN is passed over.
QC_AVX512 void low_peaks(const ScoreTile& tile, const float* widths, float* peaks) {
  const __m512 scale = _mm512_set1_ps(tile.query_scale);
  for (int64_t group = 0; group < kTileBlocks / kPeakBlocks; ++group) {
    __m512 peak = _mm512_set1_ps(-kInfinity);
    const int64_t end = std::min((group + 1) * kPeakBlocks, tile.blocks);
    for (int64_t b = group * kPeakBlocks; b < end; ++b) {
      const __m512 score = approximate(tile, b, scale);
      peak = _mm512_max_ps(_mm512_sub_ps(score, _mm512_set1_ps(widths[b])), peak);
    }
    _mm512_storeu_ps(peaks + group * kBlockRows, peak);
  }
}

QC_AVX512 float scores(const ScoreTile& tile, const float* widths, float* scores, float* peaks) {
  const __m512 scale = _mm512_set1_ps(tile.query_scale);
  __m512 best = _mm512_set1_ps(-kInfinity);
  for (int64_t group = 0; group < kTileBlocks / kPeakBlocks; ++group) {
    __m512 peak = _mm512_set1_ps(-kInfinity);
    const int64_t end = std::min((group + 1) * kPeakBlocks, tile.blocks);
    for (int64_t b = group * kPeakBlocks; b < end; ++b) {
      const __m512 score = approximate(tile, b, scale), width = _mm512_set1_ps(widths[b]);
      peak = _mm512_max_ps(_mm512_add_ps(score, width), peak);
      best = _mm512_max_ps(_mm512_sub_ps(score, width), best);
      _mm512_storeu_ps(scores + b * kBlockRows, score);
    }
    _mm512_storeu_ps(peaks + group * kBlockRows, peak);
  }
  return _mm512_reduce_max_ps(best);
}

QC_AVX512 uint64_t peaks_reach(const float* peaks, float bar) {
  uint64_t bits = 0;
  for (int64_t i = 0; i < kTilePeaks; i += kBlockRows) {
    const __m512 values = _mm512_loadu_ps(peaks + i);
    bits |= uint64_t{_mm512_cmp_ps_mask(values, _mm512_set1_ps(bar), _CMP_NLT_UQ)} << i;
  }
  return bits;
}

}  // namespace

const ScanKernels kScanAvx512{reach, low_peaks, scores, peaks_reach};

}  // namespace qcompile

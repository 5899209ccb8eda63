#include <limits>

#include "core/intrinsics.h"
#include "index/scan_kernels.h"

namespace qcompile {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

QC_AVX512 inline __m512 load_dots(const int32_t* dots) {
  return _mm512_cvtepi32_ps(_mm512_loadu_si512(dots));
}

QC_AVX512 uint64_t reach(const Tile& tile, const GroupDots& group, const float* bars,
                         uint64_t* rows) {
  __m512 scales[kTileBlocks], biases[kTileBlocks];
#pragma GCC unroll 4
  for (int64_t b = 0; b < kTileBlocks; ++b) {
    scales[b] = _mm512_loadu_ps(tile.scale + b * kBlockRows);
    biases[b] = _mm512_loadu_ps(tile.bias + b * kBlockRows);
  }
  uint64_t any = 0;
  for (int64_t q = 0; q < group.count; ++q) {
    const __m512 scale = _mm512_set1_ps(group.scales[q]), width = _mm512_set1_ps(group.widths[q]);
    const __m512 bar = _mm512_set1_ps(bars[q]);
    __mmask16 kept[kTileBlocks];
#pragma GCC unroll 4
    for (int64_t b = 0; b < kTileBlocks; ++b) {
      const __m512 dots = load_dots(group.dots + q * kTileRows + b * kBlockRows);
      const __m512 product = _mm512_fmadd_ps(dots, scale, width);
      const __m512 upper = _mm512_fmadd_ps(product, scales[b], biases[b]);
      kept[b] = _mm512_cmp_ps_mask(upper, bar, _CMP_NLT_UQ);
    }
    if (_kortestz_mask16_u8(_kor_mask16(kept[0], kept[1]), _kor_mask16(kept[2], kept[3]))) continue;
    any |= uint64_t{1} << q;
    rows[q] = 0;
#pragma GCC unroll 4
    for (int64_t b = 0; b < kTileBlocks; ++b) rows[q] |= uint64_t{kept[b]} << (b * kBlockRows);
  }
  return any;
}

// max_ps returns its second operand if the first is NaN: NaN is passed over.
QC_AVX512 float scores(const Tile& tile, const TileDots& query, float* scores, float* peaks) {
  const __m512 query_scale = _mm512_set1_ps(query.scale), query_width = _mm512_set1_ps(query.width);
  __m512 best = _mm512_set1_ps(-kInfinity), peak = best;
  for (int64_t row = 0; row < kTileRows; row += kBlockRows) {
    const __m512 scale = _mm512_loadu_ps(tile.scale + row);
    const __m512 product =
        _mm512_mul_ps(load_dots(query.dots + row), _mm512_mul_ps(scale, query_scale));
    const __m512 score = _mm512_add_ps(product, _mm512_loadu_ps(tile.bias + row));
    const __m512 width = _mm512_mul_ps(scale, query_width);
    peak = _mm512_max_ps(_mm512_add_ps(score, width), peak);
    best = _mm512_max_ps(_mm512_sub_ps(score, width), best);
    _mm512_storeu_ps(scores + row, score);
  }
  _mm512_storeu_ps(peaks, peak);
  return _mm512_reduce_max_ps(best);
}

}  // namespace

const ScanKernels kScanAvx512{reach, scores};

}  // namespace qcompile

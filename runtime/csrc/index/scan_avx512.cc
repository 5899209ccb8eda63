#include <limits>

#include "core/intrinsics.h"
#include "index/scan_kernels.h"

namespace qcompile {
namespace {

struct Broadcast {
  __m512 scale, norm, error, underflow;
};

QC_AVX512 inline Broadcast broadcast(const Query& query) {
  return {_mm512_set1_ps(query.scale), _mm512_set1_ps(query.norm), _mm512_set1_ps(query.error),
          _mm512_set1_ps(query.underflow)};
}

QC_AVX512 inline __m512 approximate(const int32_t* dots, const BlockFigures& figures,
                                    const Broadcast& query) {
  const __m512 scale = _mm512_mul_ps(_mm512_load_ps(figures.scale), query.scale);
  const __m512 sums = _mm512_cvtepi32_ps(_mm512_loadu_si512(dots));
  return _mm512_add_ps(_mm512_mul_ps(sums, scale), _mm512_load_ps(figures.bias));
}

QC_AVX512 inline __m512 margin(__m512 score, const BlockFigures& figures, const Broadcast& query) {
  const __m512 bound = _mm512_add_ps(_mm512_mul_ps(_mm512_load_ps(figures.error), query.norm),
                                     _mm512_mul_ps(_mm512_load_ps(figures.norm), query.error));
  const __m512 rounding =
      _mm512_mul_ps(_mm512_set1_ps(kRounding), _mm512_add_ps(_mm512_abs_ps(score), bound));
  return _mm512_add_ps(_mm512_add_ps(bound, rounding), query.underflow);
}

QC_AVX512 void bounds(const int32_t* dots, const BlockFigures* figures, int64_t blocks,
                      const Query& query, float least, TileBounds& bounds, TileRowsKept& kept) {
  const Broadcast q = broadcast(query);
  const __m512 threshold = _mm512_set1_ps(least);
  for (int64_t b = 0; b < blocks; ++b) {
    const __m512 score = approximate(dots + b * kBlockRows, figures[b], q);
    const __m512 width = margin(score, figures[b], q);
    const __m512 upper = _mm512_add_ps(score, width);
    kept.bits[b] = _mm512_cmp_ps_mask(upper, threshold, _CMP_NLT_UQ);
    if (kept.bits[b] == 0) continue;
    _mm512_store_ps(bounds.lower + b * kBlockRows, _mm512_sub_ps(score, width));
    _mm512_store_ps(bounds.upper + b * kBlockRows, upper);
  }
}

QC_AVX512 float scores(const int32_t* dots, const BlockFigures* figures, int64_t blocks,
                       const Query& query, float* scores) {
  const Broadcast q = broadcast(query);
  __m512 best = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  for (int64_t b = 0; b < blocks; ++b) {
    const __m512 score = approximate(dots + b * kBlockRows, figures[b], q);
    const __m512 lower = _mm512_sub_ps(score, margin(score, figures[b], q));
    best = _mm512_max_ps(lower, best);  // the second if the first is NaN
    _mm512_storeu_ps(scores + b * kBlockRows, score);
  }
  return _mm512_reduce_max_ps(best);
}

QC_AVX512 void select(const float* scores, const BlockFigures* figures, int64_t blocks,
                      const Query& query, float least, TileRowsKept& kept) {
  const Broadcast q = broadcast(query);
  const __m512 threshold = _mm512_set1_ps(least);
  for (int64_t b = 0; b < blocks; ++b) {
    const __m512 score = _mm512_loadu_ps(scores + b * kBlockRows);
    const __m512 upper = _mm512_add_ps(score, margin(score, figures[b], q));
    kept.bits[b] = _mm512_cmp_ps_mask(upper, threshold, _CMP_NLT_UQ);
  }
}

}  // namespace

const ScanKernels kScanAvx512{bounds, scores, select};

}  // namespace qcompile

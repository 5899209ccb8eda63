#include <limits>

#include "core/intrinsics.h"
#include "index/scan_kernels.h"

namespace qcompile {
namespace {

constexpr int kWidth = 8;
constexpr int kHalves = kBlockRows / kWidth;

struct Broadcast {
  __m256 scale, norm, error, underflow;
};

QC_AVX2 inline Broadcast broadcast(const Query& query) {
  return {_mm256_set1_ps(query.scale), _mm256_set1_ps(query.norm), _mm256_set1_ps(query.error),
          _mm256_set1_ps(query.underflow)};
}

QC_AVX2 inline __m256 approximate(const int32_t* dots, const BlockFigures& figures, int at,
                                  const Broadcast& query) {
  const __m256i sums = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(dots + at));
  const __m256 scale = _mm256_mul_ps(_mm256_load_ps(figures.scale + at), query.scale);
  return _mm256_add_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(sums), scale),
                       _mm256_load_ps(figures.bias + at));
}

QC_AVX2 inline __m256 margin(__m256 score, const BlockFigures& figures, int at,
                             const Broadcast& query) {
  const __m256 bound = _mm256_add_ps(_mm256_mul_ps(_mm256_load_ps(figures.error + at), query.norm),
                                     _mm256_mul_ps(_mm256_load_ps(figures.norm + at), query.error));
  const __m256 size = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), score);
  const __m256 rounding = _mm256_mul_ps(_mm256_set1_ps(kRounding), _mm256_add_ps(size, bound));
  return _mm256_add_ps(_mm256_add_ps(bound, rounding), query.underflow);
}

QC_AVX2 inline uint32_t not_below(__m256 upper, __m256 least, int at) {
  const int bits = _mm256_movemask_ps(_mm256_cmp_ps(upper, least, _CMP_NLT_UQ));
  return static_cast<uint32_t>(bits) << at;
}

QC_AVX2 void bounds(const int32_t* dots, const BlockFigures* figures, int64_t blocks,
                    const Query& query, float least, TileBounds& bounds, TileRowsKept& kept) {
  const Broadcast q = broadcast(query);
  const __m256 threshold = _mm256_set1_ps(least);
  for (int64_t b = 0; b < blocks; ++b) {
    __m256 score[kHalves], width[kHalves];
    kept.bits[b] = 0;
    for (int half = 0; half < kHalves; ++half) {
      const int at = half * kWidth;
      score[half] = approximate(dots + b * kBlockRows, figures[b], at, q);
      width[half] = margin(score[half], figures[b], at, q);
      kept.bits[b] |= not_below(_mm256_add_ps(score[half], width[half]), threshold, at);
    }
    if (kept.bits[b] == 0) continue;
    for (int half = 0; half < kHalves; ++half) {
      const int64_t at = b * kBlockRows + half * kWidth;
      _mm256_store_ps(bounds.lower + at, _mm256_sub_ps(score[half], width[half]));
      _mm256_store_ps(bounds.upper + at, _mm256_add_ps(score[half], width[half]));
    }
  }
}

QC_AVX2 float scores(const int32_t* dots, const BlockFigures* figures, int64_t blocks,
                     const Query& query, float* scores) {
  const Broadcast q = broadcast(query);
  __m256 best = _mm256_set1_ps(-std::numeric_limits<float>::infinity());
  for (int64_t b = 0; b < blocks; ++b) {
    for (int at = 0; at < kBlockRows; at += kWidth) {
      const __m256 score = approximate(dots + b * kBlockRows, figures[b], at, q);
      const __m256 lower = _mm256_sub_ps(score, margin(score, figures[b], at, q));
      best = _mm256_max_ps(lower, best);  // the second if the first is NaN
      _mm256_storeu_ps(scores + b * kBlockRows + at, score);
    }
  }
  float lanes[kWidth];
  _mm256_storeu_ps(lanes, best);
  float result = lanes[0];
  for (float lane : lanes) result = lane > result ? lane : result;
  return result;
}

QC_AVX2 void select(const float* scores, const BlockFigures* figures, int64_t blocks,
                    const Query& query, float least, TileRowsKept& kept) {
  const Broadcast q = broadcast(query);
  const __m256 threshold = _mm256_set1_ps(least);
  for (int64_t b = 0; b < blocks; ++b) {
    kept.bits[b] = 0;
    for (int at = 0; at < kBlockRows; at += kWidth) {
      const __m256 score = _mm256_loadu_ps(scores + b * kBlockRows + at);
      const __m256 upper = _mm256_add_ps(score, margin(score, figures[b], at, q));
      kept.bits[b] |= not_below(upper, threshold, at);
    }
  }
}

}  // namespace

const ScanKernels kScanAvx2{bounds, scores, select};

}  // namespace qcompile

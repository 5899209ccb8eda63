#include <limits>

#include "core/intrinsics.h"
#include "index/scan_kernels.h"

namespace qcompile {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int kWidth = 8;

QC_AVX2 inline __m256 load_dots(const int32_t* dots) {
  return _mm256_cvtepi32_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(dots)));
}

QC_AVX2 uint64_t reach(const Tile& tile, const GroupDots& group, const float* bars,
                       uint64_t* rows) {
  uint64_t any = 0;
  for (int64_t q = 0; q < group.count; ++q) {
    const __m256 scale = _mm256_set1_ps(group.scales[q]), width = _mm256_set1_ps(group.widths[q]);
    const __m256 bar = _mm256_set1_ps(bars[q]);
    rows[q] = 0;
    for (int64_t row = 0; row < kTileRows; row += kWidth) {
      const __m256 dots = load_dots(group.dots + q * kTileRows + row);
      const __m256 upper =
          _mm256_fmadd_ps(_mm256_fmadd_ps(dots, scale, width), _mm256_loadu_ps(tile.scale + row),
                          _mm256_loadu_ps(tile.bias + row));
      const __m256 kept = _mm256_cmp_ps(upper, bar, _CMP_NLT_UQ);
      rows[q] |= static_cast<uint64_t>(_mm256_movemask_ps(kept)) << row;
    }
    any |= uint64_t{rows[q] != 0} << q;
  }
  return any;
}

// max_ps returns its second operand if the first is NaN: NaN is passed over.
QC_AVX2 float scores(const Tile& tile, const TileDots& query, float* scores, float* peaks) {
  const __m256 query_scale = _mm256_set1_ps(query.scale), query_width = _mm256_set1_ps(query.width);
  __m256 best = _mm256_set1_ps(-kInfinity);
  for (int at = 0; at < kBlockRows; at += kWidth) {
    __m256 peak = _mm256_set1_ps(-kInfinity);
    for (int64_t row = at; row < kTileRows; row += kBlockRows) {
      const __m256 scale = _mm256_loadu_ps(tile.scale + row);
      const __m256 product =
          _mm256_mul_ps(load_dots(query.dots + row), _mm256_mul_ps(scale, query_scale));
      const __m256 score = _mm256_add_ps(product, _mm256_loadu_ps(tile.bias + row));
      const __m256 width = _mm256_mul_ps(scale, query_width);
      peak = _mm256_max_ps(_mm256_add_ps(score, width), peak);
      best = _mm256_max_ps(_mm256_sub_ps(score, width), best);
      _mm256_storeu_ps(scores + row, score);
    }
    _mm256_storeu_ps(peaks + at, peak);
  }
  float lanes[kWidth];
  _mm256_storeu_ps(lanes, best);
  float result = lanes[0];
  for (float lane : lanes) result = lane > result ? lane : result;
  return result;
}

}  // namespace

const ScanKernels kScanAvx2{reach, scores};

}  // namespace qcompile

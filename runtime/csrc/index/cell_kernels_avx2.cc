// AVX2: |q| * (x with q's sign), sixteen-bit pairs. 2 * 128 * 127 < 2^15, so nothing saturates.
#include <cstring>

#include "core/intrinsics.h"
#include "index/cell_kernels.h"

namespace qcompile {
namespace {

QC_AVX2 inline __m256i multiply_add(__m256i sums, __m256i rows, __m256i x) {
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(rows), _mm256_sign_epi8(x, rows));
  return _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

QC_AVX2 inline void store_scores(__m256i sums, const BlockTerms& terms, int lane, float query_scale,
                                 float* out) {
  const __m256 scale =
      _mm256_mul_ps(_mm256_load_ps(terms.scale + lane), _mm256_set1_ps(query_scale));
  const __m256 product = _mm256_mul_ps(_mm256_cvtepi32_ps(sums), scale);
  _mm256_storeu_ps(out + lane, _mm256_add_ps(product, _mm256_load_ps(terms.bias + lane)));
}

}  // namespace

QC_AVX2 void cell_scores_avx2(const PackedBlocks& blocks, const BlockList& list,
                              const CellQuery* queries, int64_t count) {
  for (int64_t i = 0; i < list.count; ++i) {
    const int8_t* rows = blocks.block(list[i]);
    const BlockTerms& terms = blocks.terms[list[i]];
    for (const CellQuery* query = queries; query != queries + count; ++query) {
      const uint8_t* x = query->values;
      __m256i low = _mm256_setzero_si256(), high = _mm256_setzero_si256();
      for (int64_t step = 0; step < blocks.steps; ++step) {
        int32_t four;
        std::memcpy(&four, x + step * kBlockDepth, sizeof four);
        const __m256i values = _mm256_set1_epi32(four ^ static_cast<int32_t>(0x80808080));
        const auto* source = reinterpret_cast<const __m256i*>(rows + step * kStepBytes);
        low = multiply_add(low, _mm256_loadu_si256(source), values);
        high = multiply_add(high, _mm256_loadu_si256(source + 1), values);
      }
      float* out = query->scores + i * kBlockRows;
      store_scores(low, terms, 0, query->scale, out);
      store_scores(high, terms, 8, query->scale, out);
    }
  }
}

QC_AVX2 uint64_t not_below_avx2(const float* scores, float bar) {
  uint64_t bits = 0;
  const __m256 bars = _mm256_set1_ps(bar);
  for (int i = 0; i < 64; i += 8) {
    const __m256 reach = _mm256_cmp_ps(_mm256_loadu_ps(scores + i), bars, _CMP_NLT_UQ);
    bits |= static_cast<uint64_t>(static_cast<unsigned>(_mm256_movemask_ps(reach))) << i;
  }
  return bits;
}

}  // namespace qcompile

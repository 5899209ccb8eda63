// AVX2: codes times signed values of the query, sixteen-bit pairs. The pairs of all codes of a byte
// add up to 2 * 2 * 15 * 128 at most, so nothing saturates.
#include <cstring>

#include "core/intrinsics.h"
#include "index/code_kernels.h"

namespace qcompile {
namespace {

QC_AVX2 inline __m256i broadcast(const int8_t* x) {
  int32_t four;
  std::memcpy(&four, x, sizeof four);
  return _mm256_set1_epi32(four);
}

template <int kBits>
QC_AVX2 inline __m256i multiply_add(__m256i sums, __m256i codes, const int8_t* x) {
  const __m256i mask = _mm256_set1_epi8((1 << kBits) - 1);
  __m256i pairs = _mm256_setzero_si256();
#pragma GCC unroll 4
  for (int shift = 0; shift < 8; shift += kBits) {
    const __m256i values = _mm256_and_si256(_mm256_srli_epi16(codes, shift), mask);
    const __m256i four = broadcast(x + shift / kBits * kBlockDepth);
    pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(values, four));
  }
  return _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

QC_AVX2 inline void store_scores(__m256i dots, const float* scales, const float* biases,
                                 float query_scale, float base, float* out) {
  const __m256 scale = _mm256_mul_ps(_mm256_loadu_ps(scales), _mm256_set1_ps(query_scale));
  const __m256 product = _mm256_mul_ps(_mm256_cvtepi32_ps(dots), scale);
  const __m256 score = _mm256_add_ps(product, _mm256_load_ps(biases));
  _mm256_storeu_ps(out, _mm256_add_ps(score, _mm256_set1_ps(base)));
}

template <int kBits>
QC_AVX2 void scores_of(const CodedBlocks& blocks, const BlockList& list, const CellQuery* queries,
                       int64_t count) {
  constexpr int kStepDepth = 8 / kBits * kBlockDepth;
  for (int64_t i = 0; i < list.count; ++i) {
    const uint8_t* rows = blocks.block(list[i]);
    const float* scale = blocks.scale + int64_t{list[i]} * kBlockRows;
    const float* bias = blocks.bias[list[i]].of;
    for (const CellQuery* query = queries; query != queries + count; ++query) {
      const auto* x = reinterpret_cast<const int8_t*>(query->values);
      __m256i low = _mm256_setzero_si256(), high = _mm256_setzero_si256();
      for (int64_t step = 0; step < blocks.steps; ++step) {
        const auto* source = reinterpret_cast<const __m256i*>(rows + step * kStepBytes);
        low = multiply_add<kBits>(low, _mm256_loadu_si256(source), x + step * kStepDepth);
        high = multiply_add<kBits>(high, _mm256_loadu_si256(source + 1), x + step * kStepDepth);
      }
      const __m256i offset = _mm256_set1_epi32(((1 << kBits) - 1) * query->sum);
      const float base = query->bases[i * query->base_step];
      float* out = query->scores + i * kBlockRows;
      store_scores(_mm256_sub_epi32(_mm256_add_epi32(low, low), offset), scale, bias, query->scale,
                   base, out);
      store_scores(_mm256_sub_epi32(_mm256_add_epi32(high, high), offset), scale + 8, bias + 8,
                   query->scale, base, out + 8);
    }
  }
}

}  // namespace

QC_AVX2 void code_scores_avx2(const CodedBlocks& blocks, const BlockList& list,
                              const CellQuery* queries, int64_t count) {
  (blocks.bits == 2 ? scores_of<2> : scores_of<4>)(blocks, list, queries, count);
}

}  // namespace qcompile

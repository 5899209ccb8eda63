// AVX2: |q| * (x with q's sign), sixteen-bit pairs. 2 * 128 * 127 < 2^15, so nothing saturates.
// Rough rows are unsigned already: 2 * 15 * 127, times 16 in the end.
#include <cstring>

#include "core/intrinsics.h"
#include "index/dot_int8.h"

namespace qcompile {
namespace {

constexpr int64_t kHalves = 2 * kTileBlocks;  // of eight rows each
constexpr int64_t kHalfBytes = kStepBytes / 2;

QC_AVX2 inline __m256i broadcast(const int8_t* x) {
  int32_t four;
  std::memcpy(&four, x, sizeof four);
  return _mm256_set1_epi32(four);
}

QC_AVX2 inline __m256i load(const void* from) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(from));
}

QC_AVX2 inline __m256i multiply_add(__m256i sums, __m256i rows, __m256i x) {
  const __m256i pairs = _mm256_maddubs_epi16(rows, x);
  return _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

// Eight rows and up to four queries.
template <int kQueries>
QC_AVX2 void some_dots(const int8_t* rows, const DotQueries& queries, int64_t first,
                       int32_t* dots) {
  const int8_t* x = queries.values + first * queries.stride;
  __m256i sums[kQueries];
  for (__m256i& sum : sums) sum = _mm256_setzero_si256();
  for (int64_t step = 0; step < queries.steps; ++step) {
    const __m256i values = load(rows + step * kStepBytes), sizes = _mm256_abs_epi8(values);
    for (int q = 0; q < kQueries; ++q) {
      const __m256i four = broadcast(x + q * queries.stride + step * kBlockDepth);
      sums[q] = multiply_add(sums[q], sizes, _mm256_sign_epi8(four, values));
    }
  }
  for (int q = 0; q < kQueries; ++q) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(dots + (first + q) * kTileRows), sums[q]);
  }
}

QC_AVX2 void dots(const int8_t* packed, const DotQueries& queries, int32_t* dots) {
  constexpr int kTogether = 4;
  for (int64_t half = 0; half < kHalves; ++half) {
    const int8_t* rows = packed + half / 2 * queries.steps * kStepBytes + half % 2 * kHalfBytes;
    int64_t query = 0;
    for (; query + kTogether <= queries.count; query += kTogether) {
      some_dots<kTogether>(rows, queries, query, dots + half * 8);
    }
    for (; query < queries.count; ++query) some_dots<1>(rows, queries, query, dots + half * 8);
  }
}

QC_AVX2 void rough_dots(const uint8_t* rough, const DotQueries& queries, int32_t* dots) {
  const int64_t pairs = ceil_div(queries.steps, 2);
  const __m256i low = _mm256_set1_epi8(0x0F);
  for (int64_t half = 0; half < kHalves; ++half) {
    const uint8_t* rows = rough + half / 2 * pairs * kStepBytes + half % 2 * kHalfBytes;
    for (int64_t query = 0; query < queries.count; ++query) {
      const int8_t* x = queries.values + query * queries.stride;
      __m256i sum = _mm256_setzero_si256();
      for (int64_t pair = 0; pair < pairs; ++pair) {
        const __m256i both = load(rows + pair * kStepBytes);
        const int8_t* at = x + 2 * pair * kBlockDepth;
        sum = multiply_add(sum, _mm256_and_si256(both, low), broadcast(at));
        sum = multiply_add(sum, _mm256_and_si256(_mm256_srli_epi16(both, 4), low),
                           broadcast(at + kBlockDepth));
      }
      const __m256i start = _mm256_set1_epi32(-kRoughOffset * queries.sums[query]);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(dots + query * kTileRows + half * 8),
                          _mm256_add_epi32(_mm256_slli_epi32(sum, 4), start));
    }
  }
}

}  // namespace

const DotKernel kDotAvx2{[](const DotQueries&) {}, dots, rough_dots, [] {}};

}  // namespace qcompile

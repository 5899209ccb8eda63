// AVX2: |q| * (x with q's sign), sixteen-bit pairs. 2 * 128 * 127 < 2^15, so nothing saturates.
#include <cstring>

#include "core/intrinsics.h"
#include "index/dot_int8.h"

namespace qcompile {
namespace {

struct Sums {
  __m256i low, high;  // rows 0-7 and 8-15 of a block
};

QC_AVX2 inline __m256i multiply_add(__m256i sums, __m256i rows, __m256i magnitudes, __m256i x) {
  const __m256i pairs = _mm256_maddubs_epi16(magnitudes, _mm256_sign_epi8(x, rows));
  return _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

QC_AVX2 inline __m256i broadcast(const uint8_t* x) {
  int32_t four;
  std::memcpy(&four, x, sizeof four);
  return _mm256_set1_epi32(four ^ static_cast<int32_t>(0x80808080));
}

template <int kQueries>
QC_AVX2 void block_of_rows(const DotTile& tile, int64_t query, int64_t block, int32_t* dots) {
  const int8_t* rows = tile.rows + block * tile.steps * kStepBytes;
  const uint8_t* x = tile.queries + query * tile.stride;
  int32_t* out = dots + (query * tile.blocks + block) * kBlockRows;
  Sums sums[kQueries];
  for (int q = 0; q < kQueries; ++q) sums[q] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
  for (int64_t step = 0; step < tile.steps; ++step) {
    const auto* source = reinterpret_cast<const __m256i*>(rows + step * kStepBytes);
    const __m256i low = _mm256_loadu_si256(source), high = _mm256_loadu_si256(source + 1);
    const __m256i low_size = _mm256_abs_epi8(low), high_size = _mm256_abs_epi8(high);
    for (int q = 0; q < kQueries; ++q) {
      const __m256i four = broadcast(x + q * tile.stride + step * kBlockDepth);
      sums[q].low = multiply_add(sums[q].low, low, low_size, four);
      sums[q].high = multiply_add(sums[q].high, high, high_size, four);
    }
  }
  for (int q = 0; q < kQueries; ++q) {
    auto* target = reinterpret_cast<__m256i*>(out + q * tile.blocks * kBlockRows);
    _mm256_storeu_si256(target, sums[q].low);
    _mm256_storeu_si256(target + 1, sums[q].high);
  }
}

}  // namespace

QC_AVX2 void dot_int8_avx2(const DotTile& tile, int32_t* dots) {
  constexpr int kTogether = 4;
  for (int64_t block = 0; block < tile.blocks; ++block) {
    int64_t query = 0;
    for (; query + kTogether <= tile.count; query += kTogether) {
      block_of_rows<kTogether>(tile, query, block, dots);
    }
    for (; query < tile.count; ++query) block_of_rows<1>(tile, query, block, dots);
  }
}

}  // namespace qcompile

#include <algorithm>

#include "core/intrinsics.h"
#include "index/dense_kernels.h"

namespace qcompile {
namespace {

constexpr int kWidth = 16;

QC_AVX512 inline float pairwise_sum(__m512 sixteen) {
  const __m256 eight =
      _mm256_add_ps(_mm512_castps512_ps256(sixteen), _mm512_extractf32x8_ps(sixteen, 1));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

QC_AVX512 inline __mmask16 first_lanes(int64_t count) {
  return static_cast<__mmask16>(count >= kWidth ? 0xFFFF : (1u << count) - 1);
}

QC_AVX512 inline float dot(const float* w, const float* x, int64_t depth) {
  __m512 sums = _mm512_setzero_ps();
  int64_t j = 0;
  for (; j + kWidth <= depth; j += kWidth) {
    sums = _mm512_fmadd_ps(_mm512_loadu_ps(w + j), _mm512_loadu_ps(x + j), sums);
  }
  if (j < depth) {
    const __mmask16 mask = first_lanes(depth - j);
    const __m512 values = _mm512_maskz_loadu_ps(mask, w + j);
    sums = _mm512_fmadd_ps(values, _mm512_maskz_loadu_ps(mask, x + j), sums);
  }
  return pairwise_sum(sums);
}

// One row after the other: some machines read several at once at a third of the speed.
QC_AVX512 void rows(const Dense& dense, const float* x, int64_t begin, int64_t end, float* scores) {
  for (int64_t row = begin; row < end; ++row) {
    scores[row - begin] = dot(dense.weight + row * dense.depth, x, dense.depth) + dense.bias[row];
  }
}

// rows[0..15] of 16 columns into columns of 16 rows.
QC_AVX512 inline void transpose_16x16(__m512 (&rows)[16]) {
  __m512 pairs[16], fours[16];
  for (int i = 0; i < 16; i += 2) {
    pairs[i] = _mm512_unpacklo_ps(rows[i], rows[i + 1]);
    pairs[i + 1] = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
  }
  // Column c of every 128-bit lane, of four rows each: fours[4 * g + c] for rows 4g..4g+3.
  for (int i = 0; i < 16; i += 4) {
    fours[i] = _mm512_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
    fours[i + 1] = _mm512_shuffle_ps(pairs[i], pairs[i + 2], 0xEE);
    fours[i + 2] = _mm512_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
    fours[i + 3] = _mm512_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xEE);
  }
  for (int c = 0; c < 4; ++c) {
    const __m512 even_low = _mm512_shuffle_f32x4(fours[c], fours[4 + c], 0x88);
    const __m512 odd_low = _mm512_shuffle_f32x4(fours[c], fours[4 + c], 0xDD);
    const __m512 even_high = _mm512_shuffle_f32x4(fours[8 + c], fours[12 + c], 0x88);
    const __m512 odd_high = _mm512_shuffle_f32x4(fours[8 + c], fours[12 + c], 0xDD);
    rows[c] = _mm512_shuffle_f32x4(even_low, even_high, 0x88);
    rows[4 + c] = _mm512_shuffle_f32x4(odd_low, odd_high, 0x88);
    rows[8 + c] = _mm512_shuffle_f32x4(even_low, even_high, 0xDD);
    rows[12 + c] = _mm512_shuffle_f32x4(odd_low, odd_high, 0xDD);
  }
}

QC_AVX512 void transpose(const Dense& dense, int64_t first, int64_t end, float* panel) {
  const int64_t depth = dense.depth;
  for (int64_t lane = 0; lane < kPanelRows; lane += kWidth) {
    for (int64_t j = 0; j < depth; j += kWidth) {
      const __mmask16 mask = first_lanes(depth - j);
      __m512 part[16];
      for (int r = 0; r < 16; ++r) {
        const int64_t row = first + lane + r;
        part[r] = row < end ? _mm512_maskz_loadu_ps(mask, dense.weight + row * depth + j)
                            : _mm512_setzero_ps();
      }
      transpose_16x16(part);
      for (int64_t i = 0; i < std::min<int64_t>(kWidth, depth - j); ++i) {
        _mm512_storeu_ps(panel + (j + i) * kPanelRows + lane, part[i]);
      }
    }
  }
}

template <int kQueries>
QC_AVX512 void multiply_panel(const DensePanel& panel, float* scores) {
  __m512 low[kQueries], high[kQueries];
#pragma GCC unroll 16
  for (int q = 0; q < kQueries; ++q) low[q] = high[q] = _mm512_setzero_ps();
  for (int64_t j = 0; j < panel.depth; ++j) {
    const __m512 w0 = _mm512_loadu_ps(panel.rows + j * kPanelRows);
    const __m512 w1 = _mm512_loadu_ps(panel.rows + j * kPanelRows + kWidth);
#pragma GCC unroll 16
    for (int q = 0; q < kQueries; ++q) {
      const __m512 x = _mm512_set1_ps(panel.queries[j * kQueries + q]);
      low[q] = _mm512_fmadd_ps(w0, x, low[q]);
      high[q] = _mm512_fmadd_ps(w1, x, high[q]);
    }
  }
  const __m512 b0 = _mm512_loadu_ps(panel.bias), b1 = _mm512_loadu_ps(panel.bias + kWidth);
#pragma GCC unroll 16
  for (int q = 0; q < kQueries; ++q) {
    _mm512_storeu_ps(scores + q * kPanelRows, _mm512_add_ps(low[q], b0));
    _mm512_storeu_ps(scores + q * kPanelRows + kWidth, _mm512_add_ps(high[q], b1));
  }
}

QC_AVX512 void multiply(const DensePanel& panel, int64_t together, float* scores) {
  if (together == 12) return multiply_panel<12>(panel, scores);
  if (together == 8) return multiply_panel<8>(panel, scores);
  multiply_panel<4>(panel, scores);
}

}  // namespace

const DenseKernels kDenseAvx512{rows, transpose, multiply};

}  // namespace qcompile

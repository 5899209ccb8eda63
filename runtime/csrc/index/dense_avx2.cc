#include <algorithm>

#include "core/intrinsics.h"
#include "index/dense_kernels.h"

namespace qcompile {
namespace {

constexpr int kWidth = 8;

QC_AVX2 inline float pairwise_sum(__m256 low, __m256 high) {
  // Lanes 0-7 plus 8-15, then halves until one is left: the order of the scalar kernel.
  const __m256 eight = _mm256_add_ps(low, high);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

QC_AVX2 inline __m256i first_lanes(int64_t count) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const auto bound = static_cast<int>(std::clamp<int64_t>(count, 0, kWidth));
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(bound), lane);
}

QC_AVX2 inline float dot(const float* w, const float* x, int64_t depth) {
  __m256 low = _mm256_setzero_ps(), high = _mm256_setzero_ps();
  int64_t j = 0;
  for (; j + 2 * kWidth <= depth; j += 2 * kWidth) {
    low = _mm256_fmadd_ps(_mm256_loadu_ps(w + j), _mm256_loadu_ps(x + j), low);
    high = _mm256_fmadd_ps(_mm256_loadu_ps(w + j + kWidth), _mm256_loadu_ps(x + j + kWidth), high);
  }
  if (j < depth) {
    const __m256i m0 = first_lanes(depth - j), m1 = first_lanes(depth - j - kWidth);
    const int64_t upper = std::min(j + kWidth, depth);  // nothing is read there if m1 is empty
    low = _mm256_fmadd_ps(_mm256_maskload_ps(w + j, m0), _mm256_maskload_ps(x + j, m0), low);
    high =
        _mm256_fmadd_ps(_mm256_maskload_ps(w + upper, m1), _mm256_maskload_ps(x + upper, m1), high);
  }
  return pairwise_sum(low, high);
}

// One row after the other: some machines read several at once at a third of the speed.
QC_AVX2 void rows(const Dense& dense, const float* x, int64_t begin, int64_t end, float* scores) {
  for (int64_t row = begin; row < end; ++row) {
    scores[row - begin] = dot(dense.weight + row * dense.depth, x, dense.depth) + dense.bias[row];
  }
}

// rows[0..7] of 8 columns into columns of 8 rows.
QC_AVX2 inline void transpose_8x8(__m256 (&rows)[8]) {
  __m256 pairs[8], fours[8];
  for (int i = 0; i < 8; i += 2) {
    pairs[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
    pairs[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    fours[i] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
    fours[i + 1] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0xEE);
    fours[i + 2] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
    fours[i + 3] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xEE);
  }
  for (int i = 0; i < 4; ++i) {
    rows[i] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x20);
    rows[i + 4] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x31);
  }
}

QC_AVX2 void transpose(const Dense& dense, int64_t first, int64_t end, float* panel) {
  const int64_t depth = dense.depth;
  for (int64_t lane = 0; lane < kPanelRows; lane += kWidth) {
    for (int64_t j = 0; j < depth; j += kWidth) {
      const __m256i mask = first_lanes(depth - j);
      __m256 part[8];
      for (int r = 0; r < 8; ++r) {
        const int64_t row = first + lane + r;
        part[r] = row < end ? _mm256_maskload_ps(dense.weight + row * depth + j, mask)
                            : _mm256_setzero_ps();
      }
      transpose_8x8(part);
      for (int64_t i = 0; i < std::min<int64_t>(kWidth, depth - j); ++i) {
        _mm256_storeu_ps(panel + (j + i) * kPanelRows + lane, part[i]);
      }
    }
  }
}

// Queries at..at+3 of `together` with sixteen rows at a time: eight sums in registers.
QC_AVX2 void multiply_four(const DensePanel& panel, int64_t together, int64_t at, float* scores) {
  constexpr int kQueries = kQueryStep;
  for (int64_t lane = 0; lane < kPanelRows; lane += 2 * kWidth) {
    __m256 low[kQueries], high[kQueries];
    for (int q = 0; q < kQueries; ++q) low[q] = high[q] = _mm256_setzero_ps();
    for (int64_t j = 0; j < panel.depth; ++j) {
      const __m256 w0 = _mm256_loadu_ps(panel.rows + j * kPanelRows + lane);
      const __m256 w1 = _mm256_loadu_ps(panel.rows + j * kPanelRows + lane + kWidth);
      for (int q = 0; q < kQueries; ++q) {
        const __m256 x = _mm256_broadcast_ss(panel.queries + j * together + at + q);
        low[q] = _mm256_fmadd_ps(w0, x, low[q]);
        high[q] = _mm256_fmadd_ps(w1, x, high[q]);
      }
    }
    const __m256 b0 = _mm256_loadu_ps(panel.bias + lane);
    const __m256 b1 = _mm256_loadu_ps(panel.bias + lane + kWidth);
    for (int q = 0; q < kQueries; ++q) {
      float* target = scores + (at + q) * kPanelRows + lane;
      _mm256_storeu_ps(target, _mm256_add_ps(low[q], b0));
      _mm256_storeu_ps(target + kWidth, _mm256_add_ps(high[q], b1));
    }
  }
}

QC_AVX2 void multiply(const DensePanel& panel, int64_t together, float* scores) {
  for (int64_t at = 0; at < together; at += kQueryStep) multiply_four(panel, together, at, scores);
}

}  // namespace

const DenseKernels kDenseAvx2{rows, transpose, multiply};

}  // namespace qcompile

#include "core/intrinsics.h"
#include "train/kernels.h"

namespace qcompile {
namespace {

constexpr int kWidth = 8;  // floats of one register
constexpr int kTileBlocks = 2;

// All bits set in the first `count` lanes.
QC_AVX2 inline __m256i first(int64_t count) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count < 8 ? count : 8)), lane);
}

QC_AVX2 float dot(const float* a, const float* b, int64_t size) {
  __m256 sum[8] = {};
  int64_t i = 0;
  for (; i + kDotLanes <= size; i += kDotLanes) {
#pragma GCC unroll 8
    for (int v = 0; v < 8; ++v) {
      const int64_t at = i + v * kWidth;
      sum[v] = _mm256_fmadd_ps(_mm256_loadu_ps(a + at), _mm256_loadu_ps(b + at), sum[v]);
    }
  }
#pragma GCC unroll 8
  for (int v = 0; v < 8; ++v, i += kWidth) {
    if (i >= size) break;
    const __m256i mask = first(size - i);
    sum[v] =
        _mm256_fmadd_ps(_mm256_maskload_ps(a + i, mask), _mm256_maskload_ps(b + i, mask), sum[v]);
  }
  // Lane i of 64 and lane i + 32, then the halves of what is left.
#pragma GCC unroll 4
  for (int width = 4; width > 0; width /= 2) {
    for (int v = 0; v < width; ++v) sum[v] = _mm256_add_ps(sum[v], sum[v + width]);
  }
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(sum[0]), _mm256_extractf128_ps(sum[0], 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

QC_AVX2 void add_scaled(float scale, const float* x, float* y, int64_t size) {
  const __m256 factor = _mm256_set1_ps(scale);
  int64_t i = 0;
  for (; i + kWidth <= size; i += kWidth) {
    const __m256 sum = _mm256_loadu_ps(y + i);
    _mm256_storeu_ps(y + i, _mm256_fmadd_ps(factor, _mm256_loadu_ps(x + i), sum));
  }
  if (i < size) {
    const __m256i mask = first(size - i);
    const __m256 sum = _mm256_maskload_ps(y + i, mask);
    _mm256_maskstore_ps(y + i, mask, _mm256_fmadd_ps(factor, _mm256_maskload_ps(x + i, mask), sum));
  }
}

// kRows x kBlocks accumulators stay in registers over the whole depth.
template <int kRows, int kBlocks>
QC_AVX2 inline void tile(int64_t depth, Strided a, const float* b, int64_t b_stride, float* c,
                         int64_t c_stride) {
  __m256 sum[kRows][kBlocks];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kBlocks; ++v) sum[r][v] = _mm256_loadu_ps(c + r * c_stride + v * kWidth);
  }
  for (int64_t k = 0; k < depth; ++k) {
    __m256 right[kBlocks];
#pragma GCC unroll 2
    for (int v = 0; v < kBlocks; ++v) right[v] = _mm256_loadu_ps(b + k * b_stride + v * kWidth);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const __m256 left = _mm256_set1_ps(a.data[r * a.row_stride + k * a.column_stride]);
#pragma GCC unroll 2
      for (int v = 0; v < kBlocks; ++v) sum[r][v] = _mm256_fmadd_ps(left, right[v], sum[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kBlocks; ++v) _mm256_storeu_ps(c + r * c_stride + v * kWidth, sum[r][v]);
  }
}

template <int kBlocks>
QC_AVX2 void column_panel(int64_t rows, int64_t depth, Strided a, const float* b, int64_t b_stride,
                          float* c, int64_t c_stride) {
  int64_t r = 0;
  const auto left = [&] {
    return Strided{a.data + r * a.row_stride, a.row_stride, a.column_stride};
  };
  for (; r + 6 <= rows; r += 6) {
    tile<6, kBlocks>(depth, left(), b, b_stride, c + r * c_stride, c_stride);
  }
  for (; r < rows; ++r) tile<1, kBlocks>(depth, left(), b, b_stride, c + r * c_stride, c_stride);
}

QC_AVX2 void multiply_add(int64_t rows, int64_t columns, int64_t depth, Strided a, const float* b,
                          int64_t b_stride, float* c, int64_t c_stride) {
  int64_t j = 0;
  for (; j + kTileBlocks * kWidth <= columns; j += kTileBlocks * kWidth) {
    column_panel<kTileBlocks>(rows, depth, a, b + j, b_stride, c + j, c_stride);
  }
  for (; j + kWidth <= columns; j += kWidth) {
    column_panel<1>(rows, depth, a, b + j, b_stride, c + j, c_stride);
  }
  if (j == columns) return;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t k = 0; k < depth; ++k) {
      const float left = a.data[r * a.row_stride + k * a.column_stride];
      add_scaled(left, b + k * b_stride + j, c + r * c_stride + j, columns - j);
    }
  }
}

}  // namespace

const TrainKernels kAvx2TrainKernels = {dot, add_scaled, multiply_add};

}  // namespace qcompile

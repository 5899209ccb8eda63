#include "core/intrinsics.h"
#include "train/kernels.h"

namespace qcompile {
namespace {

constexpr int kWidth = 16;  // floats of one register
constexpr int kTileBlocks = 4;

QC_AVX512 inline __mmask16 first(int64_t count) {
  return static_cast<__mmask16>((1u << count) - 1);
}

QC_AVX512 float dot(const float* a, const float* b, int64_t size) {
  __m512 sum[4] = {};
  int64_t i = 0;
  for (; i + kDotLanes <= size; i += kDotLanes) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      const int64_t at = i + v * kWidth;
      sum[v] = _mm512_fmadd_ps(_mm512_loadu_ps(a + at), _mm512_loadu_ps(b + at), sum[v]);
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < 4; ++v, i += kWidth) {
    if (i >= size) break;
    const __mmask16 mask = size - i >= kWidth ? __mmask16{0xffff} : first(size - i);
    sum[v] = _mm512_mask3_fmadd_ps(_mm512_maskz_loadu_ps(mask, a + i),
                                   _mm512_maskz_loadu_ps(mask, b + i), sum[v], mask);
  }
  // Lane i of 64 and lane i + 32, then the halves of what is left.
  const __m512 total = _mm512_add_ps(_mm512_add_ps(sum[0], sum[2]), _mm512_add_ps(sum[1], sum[3]));
  const __m256 eight =
      _mm256_add_ps(_mm512_castps512_ps256(total), _mm512_extractf32x8_ps(total, 1));
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

QC_AVX512 void add_scaled(float scale, const float* x, float* y, int64_t size) {
  const __m512 factor = _mm512_set1_ps(scale);
  int64_t i = 0;
  for (; i + kWidth <= size; i += kWidth) {
    const __m512 sum = _mm512_loadu_ps(y + i);
    _mm512_storeu_ps(y + i, _mm512_fmadd_ps(factor, _mm512_loadu_ps(x + i), sum));
  }
  if (i < size) {
    const __mmask16 mask = first(size - i);
    const __m512 sum = _mm512_maskz_loadu_ps(mask, y + i);
    _mm512_mask_storeu_ps(y + i, mask,
                          _mm512_fmadd_ps(factor, _mm512_maskz_loadu_ps(mask, x + i), sum));
  }
}

// kRows x kBlocks accumulators stay in registers over the whole depth; `last` masks the columns of
// the last block.
template <int kRows, int kBlocks>
QC_AVX512 inline void tile(int64_t depth, Strided a, const float* b, int64_t b_stride, float* c,
                           int64_t c_stride, __mmask16 last) {
  __m512 sum[kRows][kBlocks];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kBlocks; ++v) {
      const __mmask16 mask = v + 1 == kBlocks ? last : __mmask16{0xffff};
      sum[r][v] = _mm512_maskz_loadu_ps(mask, c + r * c_stride + v * kWidth);
    }
  }
  for (int64_t k = 0; k < depth; ++k) {
    __m512 right[kBlocks];
#pragma GCC unroll 4
    for (int v = 0; v < kBlocks; ++v) {
      const __mmask16 mask = v + 1 == kBlocks ? last : __mmask16{0xffff};
      right[v] = _mm512_maskz_loadu_ps(mask, b + k * b_stride + v * kWidth);
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const __m512 left = _mm512_set1_ps(a.data[r * a.row_stride + k * a.column_stride]);
#pragma GCC unroll 4
      for (int v = 0; v < kBlocks; ++v) sum[r][v] = _mm512_fmadd_ps(left, right[v], sum[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kBlocks; ++v) {
      const __mmask16 mask = v + 1 == kBlocks ? last : __mmask16{0xffff};
      _mm512_mask_storeu_ps(c + r * c_stride + v * kWidth, mask, sum[r][v]);
    }
  }
}

// All rows for the columns of one tile, whose part of `b` stays in the first cache.
template <int kBlocks>
QC_AVX512 void column_panel(int64_t rows, int64_t depth, Strided a, const float* b,
                            int64_t b_stride, float* c, int64_t c_stride, __mmask16 last) {
  int64_t r = 0;
  const auto left = [&] {
    return Strided{a.data + r * a.row_stride, a.row_stride, a.column_stride};
  };
  for (; r + 6 <= rows; r += 6) {
    tile<6, kBlocks>(depth, left(), b, b_stride, c + r * c_stride, c_stride, last);
  }
  for (; r + 2 <= rows; r += 2) {
    tile<2, kBlocks>(depth, left(), b, b_stride, c + r * c_stride, c_stride, last);
  }
  if (r < rows) tile<1, kBlocks>(depth, left(), b, b_stride, c + r * c_stride, c_stride, last);
}

QC_AVX512 void multiply_add(int64_t rows, int64_t columns, int64_t depth, Strided a, const float* b,
                            int64_t b_stride, float* c, int64_t c_stride) {
  constexpr __mmask16 kAll = 0xffff;
  int64_t j = 0;
  for (; j + kTileBlocks * kWidth <= columns; j += kTileBlocks * kWidth) {
    column_panel<kTileBlocks>(rows, depth, a, b + j, b_stride, c + j, c_stride, kAll);
  }
  const int64_t left = columns - j;
  if (left == 0) return;
  const __mmask16 last = left % kWidth == 0 ? kAll : first(left % kWidth);
  const auto panel = left > 3 * kWidth   ? column_panel<4>
                     : left > 2 * kWidth ? column_panel<3>
                     : left > kWidth     ? column_panel<2>
                                         : column_panel<1>;
  panel(rows, depth, a, b + j, b_stride, c + j, c_stride, last);
}

}  // namespace

const TrainKernels kAvx512TrainKernels = {dot, add_scaled, multiply_add};

}  // namespace qcompile

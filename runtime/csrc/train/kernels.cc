#include "train/kernels.h"

#include "core/lanes.h"

namespace qcompile {
namespace {

QC_INLINE float dot_body(const float* a, const float* b, int64_t size) {
  Lanes sum = {};
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) sum += load_lanes(a + i) * load_lanes(b + i);
  float total = sum_lanes(sum);
  for (; i < size; ++i) total += a[i] * b[i];
  return total;
}

QC_INLINE void add_scaled_body(float scale, const float* x, float* y, int64_t size) {
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    store_lanes(y + i, load_lanes(y + i) + load_lanes(x + i) * scale);
  }
  for (; i < size; ++i) y[i] += x[i] * scale;
}

// kRows x kBlocks accumulators stay in registers over the whole depth.
template <int kRows, int kBlocks>
QC_INLINE void tile(int64_t depth, Strided a, const float* b, int64_t b_stride, float* c,
                    int64_t c_stride) {
  Lanes sum[kRows][kBlocks];
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kBlocks; ++v) sum[r][v] = load_lanes(c + r * c_stride + v * kLanes);
  }
  for (int64_t k = 0; k < depth; ++k) {
    Lanes right[kBlocks];
    for (int v = 0; v < kBlocks; ++v) right[v] = load_lanes(b + k * b_stride + v * kLanes);
    for (int r = 0; r < kRows; ++r) {
      const float left = a.data[r * a.row_stride + k * a.column_stride];
      for (int v = 0; v < kBlocks; ++v) sum[r][v] += right[v] * left;
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kBlocks; ++v) store_lanes(c + r * c_stride + v * kLanes, sum[r][v]);
  }
}

template <int kRows>
QC_INLINE void columns_left(int64_t columns, int64_t depth, Strided a, const float* b,
                            int64_t b_stride, float* c, int64_t c_stride) {
  for (int r = 0; r < kRows; ++r) {
    for (int64_t k = 0; k < depth; ++k) {
      const float left = a.data[r * a.row_stride + k * a.column_stride];
      for (int64_t j = 0; j < columns; ++j) c[r * c_stride + j] += b[k * b_stride + j] * left;
    }
  }
}

template <int kRows, int kBlocks>
QC_INLINE void row_band(int64_t columns, int64_t depth, Strided a, const float* b, int64_t b_stride,
                        float* c, int64_t c_stride) {
  int64_t j = 0;
  for (; j + kBlocks * kLanes <= columns; j += kBlocks * kLanes) {
    tile<kRows, kBlocks>(depth, a, b + j, b_stride, c + j, c_stride);
  }
  for (; j + kLanes <= columns; j += kLanes) {
    tile<kRows, 1>(depth, a, b + j, b_stride, c + j, c_stride);
  }
  columns_left<kRows>(columns - j, depth, a, b + j, b_stride, c + j, c_stride);
}

template <int kRows, int kBlocks>
QC_INLINE void multiply_add_body(int64_t rows, int64_t columns, int64_t depth, Strided a,
                                 const float* b, int64_t b_stride, float* c, int64_t c_stride) {
  int64_t r = 0;
  for (; r + kRows <= rows; r += kRows) {
    row_band<kRows, kBlocks>(columns, depth, a, b, b_stride, c + r * c_stride, c_stride);
    a.data += kRows * a.row_stride;
  }
  for (; r < rows; ++r) {
    row_band<1, kBlocks>(columns, depth, a, b, b_stride, c + r * c_stride, c_stride);
    a.data += a.row_stride;
  }
}

// One table of functions per instruction set: the bodies above, inlined into each. The tile is as
// large as that set has registers for.
#define QC_TRAIN_KERNELS(name, attribute, rows_, blocks_)                                       \
  struct name {                                                                                 \
    attribute static float dot(const float* a, const float* b, int64_t size) {                  \
      return dot_body(a, b, size);                                                              \
    }                                                                                           \
    attribute static void add_scaled(float scale, const float* x, float* y, int64_t size) {     \
      add_scaled_body(scale, x, y, size);                                                       \
    }                                                                                           \
    attribute static void multiply_add(int64_t rows, int64_t columns, int64_t depth, Strided a, \
                                       const float* b, int64_t b_stride, float* c,              \
                                       int64_t c_stride) {                                      \
      multiply_add_body<rows_, blocks_>(rows, columns, depth, a, b, b_stride, c, c_stride);     \
    }                                                                                           \
    static constexpr TrainKernels kTable = {dot, add_scaled, multiply_add};                     \
  };

QC_TRAIN_KERNELS(Scalar, , 2, 1)
QC_TRAIN_KERNELS(Avx2, QC_AVX2, 4, 1)
QC_TRAIN_KERNELS(Avx512, QC_AVX512, 6, 4)
#undef QC_TRAIN_KERNELS

}  // namespace

const TrainKernels& train_kernels(Isa isa) {
  if (isa >= Isa::kAvx512) return Avx512::kTable;
  return isa == Isa::kAvx2 ? Avx2::kTable : Scalar::kTable;
}

}  // namespace qcompile

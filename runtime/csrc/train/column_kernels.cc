#include "train/column_kernels.h"

#include "core/exponent.h"
#include "core/lanes.h"

namespace qcompile {
namespace {

constexpr float kGreatest = 88.0f;  // of what exponential() takes

QC_INLINE void complete_body(float* __restrict__ logits, int64_t rows, int64_t stride,
                             const float* bias, const float* drawn,
                             const float* __restrict__ correction, float* __restrict__ top) {
  for (int64_t r = 0; r < rows; ++r) {
    const float base = bias[r];
    const float counted = drawn[r];
    float* __restrict__ row = logits + r * stride;
    for (int64_t e = 0; e < stride; ++e) {
      const float logit = row[e] + (base + counted * correction[e]);
      row[e] = logit;
      top[e] = logit > top[e] ? logit : top[e];
    }
  }
}

// Of a logit that a caller's normaliser is far below, the exponential stays finite.
QC_INLINE float bounded_exponential(float x) { return exponential(x > kGreatest ? kGreatest : x); }

QC_INLINE void exponentials_body(const float* logits, float* to, int64_t rows, int64_t stride,
                                 const float* __restrict__ shift, float* __restrict__ sums) {
  for (int64_t e = 0; e < stride; ++e) sums[e] = 0.0f;
  for (int64_t r = 0; r < rows; ++r) {
    const float* from = logits + r * stride;
    float* out = to + r * stride;
    for (int64_t first = 0; first < stride; first += kLanes) {
      for (int lane = 0; lane < kLanes; ++lane) {
        const float value = bounded_exponential(from[first + lane] - shift[first + lane]);
        out[first + lane] = value;
        sums[first + lane] += value;
      }
    }
  }
}

QC_INLINE void gradients_body(const float* logits, float* to, int64_t rows, int64_t stride,
                              const float* __restrict__ shift, const float* __restrict__ factor,
                              float* __restrict__ row_sums) {
  for (int64_t r = 0; r < rows; ++r) {
    const float* from = logits + r * stride;
    float* out = to + r * stride;
    float sum[kLanes] = {};
    for (int64_t first = 0; first < stride; first += kLanes) {
      for (int lane = 0; lane < kLanes; ++lane) {
        const int64_t e = first + lane;
        const float value = factor[e] * bounded_exponential(from[e] - shift[e]);
        out[e] = value;
        sum[lane] += value;
      }
    }
    row_sums[r] = sum_lanes(load_lanes(sum));
  }
}

#define QC_COLUMN_KERNELS(name, attribute)                                                         \
  struct name {                                                                                    \
    attribute static void complete(float* logits, int64_t rows, int64_t stride, const float* bias, \
                                   const float* drawn, const float* correction, float* top) {      \
      complete_body(logits, rows, stride, bias, drawn, correction, top);                           \
    }                                                                                              \
    attribute static void exponentials(const float* logits, float* to, int64_t rows,               \
                                       int64_t stride, const float* shift, float* sums) {          \
      exponentials_body(logits, to, rows, stride, shift, sums);                                    \
    }                                                                                              \
    attribute static void gradients(const float* logits, float* to, int64_t rows, int64_t stride,  \
                                    const float* shift, const float* factor, float* row_sums) {    \
      gradients_body(logits, to, rows, stride, shift, factor, row_sums);                           \
    }                                                                                              \
    static constexpr ColumnKernels kTable = {complete, exponentials, gradients};                   \
  };

QC_COLUMN_KERNELS(Scalar, )
QC_COLUMN_KERNELS(Avx2, QC_AVX2)
QC_COLUMN_KERNELS(Avx512, QC_AVX512)
#undef QC_COLUMN_KERNELS

}  // namespace

const ColumnKernels& column_kernels(Isa isa) {
  if (isa >= Isa::kAvx512) return Avx512::kTable;
  return isa == Isa::kAvx2 ? Avx2::kTable : Scalar::kTable;
}

}  // namespace qcompile

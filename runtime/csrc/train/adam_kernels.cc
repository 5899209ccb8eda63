#include "train/adam_kernels.h"

#include <cmath>

namespace qcompile {
namespace {

QC_INLINE void idle_body(const AdamRow& row, const IdleStep& step) {
  float* __restrict__ value = row.value;
  float* __restrict__ first = row.first;
  float* __restrict__ second = row.second;
  for (int64_t j = 0; j < row.size; ++j) {
    value[j] -= step.sum * first[j] / (std::sqrt(second[j]) * step.spread + step.epsilon);
    first[j] *= step.first_decay;
    second[j] *= step.second_decay;
  }
}

QC_INLINE void gradient_body(const AdamRow& row, const float* __restrict__ gradient,
                             const GradientStep& step) {
  float* __restrict__ value = row.value;
  float* __restrict__ first = row.first;
  float* __restrict__ second = row.second;
  for (int64_t j = 0; j < row.size; ++j) {
    const float g = gradient[j];
    first[j] += (g - first[j]) * step.first_rate;
    second[j] = second[j] * step.second_decay + g * g * step.second_rate;
    value[j] -=
        step.step_size * first[j] / (std::sqrt(second[j]) / step.second_scale + step.epsilon);
  }
}

#define QC_ADAM_KERNELS(name, attribute)                                                           \
  struct name {                                                                                    \
    attribute static void idle(const AdamRow& row, const IdleStep& step) { idle_body(row, step); } \
    attribute static void gradient(const AdamRow& row, const float* gradient,                      \
                                   const GradientStep& step) {                                     \
      gradient_body(row, gradient, step);                                                          \
    }                                                                                              \
    static constexpr AdamKernels kTable = {idle, gradient};                                        \
  };

QC_ADAM_KERNELS(Scalar, )
QC_ADAM_KERNELS(Avx2, QC_AVX2)
QC_ADAM_KERNELS(Avx512, QC_AVX512)
#undef QC_ADAM_KERNELS

}  // namespace

const AdamKernels& adam_kernels(Isa isa) {
  if (isa >= Isa::kAvx512) return Avx512::kTable;
  return isa == Isa::kAvx2 ? Avx2::kTable : Scalar::kTable;
}

}  // namespace qcompile

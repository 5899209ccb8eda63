#include "index/rescore.h"

namespace qcompile {
namespace {

constexpr int kLanes = 16;

QC_INLINE float score(const Dense& dense, int64_t row, const double* x) {
  const float* w = dense.weight + row * dense.depth;
  double sums[kLanes] = {};
  int64_t j = 0;
  for (; j + kLanes <= dense.depth; j += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      sums[lane] += static_cast<double>(w[j + lane]) * x[j + lane];
    }
  }
  for (int lane = 0; j < dense.depth; ++lane, ++j) sums[lane] += static_cast<double>(w[j]) * x[j];
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int lane = 0; lane < width; ++lane) sums[lane] += sums[lane + width];
  }
  return static_cast<float>(sums[0] + static_cast<double>(dense.bias[row]));
}

float score_scalar(const Dense& dense, int64_t row, const double* x) {
  return score(dense, row, x);
}
QC_AVX2 float score_avx2(const Dense& dense, int64_t row, const double* x) {
  return score(dense, row, x);
}
QC_AVX512 float score_avx512(const Dense& dense, int64_t row, const double* x) {
  return score(dense, row, x);
}

}  // namespace

ScoreKernel score_kernel(Isa isa) {
  if (isa == Isa::kScalar) return score_scalar;
  return isa == Isa::kAvx2 ? score_avx2 : score_avx512;
}

}  // namespace qcompile

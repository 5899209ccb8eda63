#include "index/rescore.h"

#include <algorithm>

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

void write_best(const Dense& dense, const double* x, std::vector<Ranked>& rows, int64_t k,
                float* scores, int64_t* ids, Isa isa) {
  const ScoreKernel score = score_kernel(isa);
  for (Ranked& each : rows) each.score = score(dense, each.row, x);
  std::partial_sort(rows.begin(), rows.begin() + k, rows.end(), before);
  for (int64_t i = 0; i < k; ++i) {
    scores[i] = rows[static_cast<size_t>(i)].score;
    ids[i] = rows[static_cast<size_t>(i)].row;
  }
}

}  // namespace qcompile

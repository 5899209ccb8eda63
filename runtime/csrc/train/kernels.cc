#include "train/kernels.h"

namespace qcompile {
namespace {

float dot(const float* a, const float* b, int64_t size) {
  float part[kDotLanes] = {};
  for (int64_t i = 0; i < size; ++i) {
    float& sum = part[i % kDotLanes];
    sum = __builtin_fmaf(a[i], b[i], sum);
  }
  for (int64_t width = kDotLanes / 2; width > 0; width /= 2) {
    for (int64_t i = 0; i < width; ++i) part[i] += part[i + width];
  }
  return part[0];
}

void add_scaled(float scale, const float* x, float* y, int64_t size) {
  for (int64_t i = 0; i < size; ++i) y[i] = __builtin_fmaf(scale, x[i], y[i]);
}

void multiply_add(int64_t rows, int64_t columns, int64_t depth, Strided a, const float* b,
                  int64_t b_stride, float* c, int64_t c_stride) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t k = 0; k < depth; ++k) {
      const float left = a.data[r * a.row_stride + k * a.column_stride];
      add_scaled(left, b + k * b_stride, c + r * c_stride, columns);
    }
  }
}

}  // namespace

const TrainKernels kScalarTrainKernels = {dot, add_scaled, multiply_add};

}  // namespace qcompile

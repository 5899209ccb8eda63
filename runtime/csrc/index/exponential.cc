#include "index/exponential.h"

#include <algorithm>
#include <limits>

#include "core/exponent.h"

namespace qcompile {
namespace {

constexpr int kLanes = 16;
constexpr int64_t kChunk = 256;  // values summed in float before the sum goes to a double

QC_INLINE WeightedSums exponentials_body(float* values, int64_t count, float shift,
                                         const float* weights) {
  WeightedSums sums{0, 0};
  for (int64_t first = 0; first < count; first += kChunk) {
    const int64_t end = std::min(first + kChunk, count);
    float plain[kLanes] = {}, weighted[kLanes] = {};
    int64_t i = first;
    for (; i + kLanes <= end; i += kLanes) {
      const float weight = weights ? weights[i / kLanes] : 0.0f;
      for (int lane = 0; lane < kLanes; ++lane) {
        const float e = exponential(values[i + lane] - shift);
        values[i + lane] = e;
        plain[lane] += e;
        weighted[lane] = __builtin_fmaf(e, weight, weighted[lane]);
      }
    }
    for (int lane = 0; i < end; ++lane, ++i) {
      values[i] = exponential(values[i] - shift);
      plain[lane] += values[i];
      if (weights) weighted[lane] += values[i] * weights[i / kLanes];
    }
    for (int lane = 0; lane < kLanes; ++lane) {
      sums.plain += plain[lane];
      sums.weighted += weighted[lane];
    }
  }
  return sums;
}

// Products below the normal floats, which many a processor is slow at, become zero.
QC_INLINE void scale_body(float* values, int64_t count, float factor) {
  constexpr float kLeast = std::numeric_limits<float>::min();
  const float divided = factor < 1 ? kLeast / factor : kLeast;
  const float least = factor == factor ? divided : 0;  // NaN goes to all values
  for (int64_t i = 0; i < count; ++i) values[i] = values[i] < least ? 0.0f : values[i] * factor;
}

QC_INLINE float greatest_body(const float* values, int64_t count) {
  constexpr int64_t kApart = 4 * kLanes;  // comparisons that need not wait for each other
  float best[kApart];
  for (float& lane : best) lane = -std::numeric_limits<float>::infinity();
  int64_t i = 0;
  for (; i + kApart <= count; i += kApart) {
    for (int64_t lane = 0; lane < kApart; ++lane) {
      best[lane] = values[i + lane] > best[lane] ? values[i + lane] : best[lane];
    }
  }
  for (; i < count; ++i) best[0] = values[i] > best[0] ? values[i] : best[0];
  return *std::ranges::max_element(best);
}

WeightedSums sums_scalar(float* v, int64_t n, float shift, const float* weights) {
  return exponentials_body(v, n, shift, weights);
}
QC_AVX2 WeightedSums sums_avx2(float* v, int64_t n, float shift, const float* weights) {
  return exponentials_body(v, n, shift, weights);
}
QC_AVX512 WeightedSums sums_avx512(float* v, int64_t n, float shift, const float* weights) {
  return exponentials_body(v, n, shift, weights);
}
void scale_scalar(float* v, int64_t n, float factor) { scale_body(v, n, factor); }
QC_AVX2 void scale_avx2(float* v, int64_t n, float factor) { scale_body(v, n, factor); }
QC_AVX512 void scale_avx512(float* v, int64_t n, float factor) { scale_body(v, n, factor); }
float greatest_scalar(const float* v, int64_t n) { return greatest_body(v, n); }
QC_AVX2 float greatest_avx2(const float* v, int64_t n) { return greatest_body(v, n); }
QC_AVX512 float greatest_avx512(const float* v, int64_t n) { return greatest_body(v, n); }

}  // namespace

double exponentials(float* values, int64_t count, float shift, Isa isa) {
  return weighted_exponentials(values, count, shift, nullptr, isa).plain;
}

WeightedSums weighted_exponentials(float* values, int64_t count, float shift, const float* weights,
                                   Isa isa) {
  if (isa == Isa::kScalar) return sums_scalar(values, count, shift, weights);
  if (isa == Isa::kAvx2) return sums_avx2(values, count, shift, weights);
  return sums_avx512(values, count, shift, weights);
}

void scale_values(float* values, int64_t count, float factor, Isa isa) {
  if (isa == Isa::kScalar) return scale_scalar(values, count, factor);
  if (isa == Isa::kAvx2) return scale_avx2(values, count, factor);
  scale_avx512(values, count, factor);
}

float greatest(const float* values, int64_t count, Isa isa) {
  if (isa == Isa::kScalar) return greatest_scalar(values, count);
  if (isa == Isa::kAvx2) return greatest_avx2(values, count);
  return greatest_avx512(values, count);
}

}  // namespace qcompile

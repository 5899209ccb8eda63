// Sixteen floats side by side. The compiler makes one, two or four registers of them, whatever the
// instruction set of the function into which these are inlined, and the results are the same.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/isa.h"

namespace qcompile {

constexpr int kLanes = 16;

using Lanes = float __attribute__((vector_size(kLanes * sizeof(float))));
using LaneInts = int32_t __attribute__((vector_size(kLanes * sizeof(int32_t))));

QC_INLINE Lanes load_lanes(const float* from) {
  Lanes lanes;
  std::memcpy(&lanes, from, sizeof lanes);
  return lanes;
}

QC_INLINE void store_lanes(float* to, Lanes lanes) { std::memcpy(to, &lanes, sizeof lanes); }

QC_INLINE Lanes all_lanes(float value) { return Lanes{} + value; }

// a · b + c with one rounding.
QC_INLINE Lanes fma_lanes(Lanes a, Lanes b, Lanes c) {
  for (int i = 0; i < kLanes; ++i) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return c;
}

// The sum in a fixed order, halving the width at each step.
QC_INLINE float sum_lanes(Lanes lanes) {
  float part[kLanes];
  store_lanes(part, lanes);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) part[i] += part[i + width];
  }
  return part[0];
}

}  // namespace qcompile

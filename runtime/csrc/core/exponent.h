// exp of one float, to be inlined into loops that vectorise.
#pragma once

#include <bit>
#include <cstdint>

#include "core/isa.h"

namespace qcompile {

// Within 2 units in the last place for x <= 88; zero below the logarithm of the smallest normal
// float; the same for every instruction set.
// exp(x) = 2^n * exp(r) with n = round(x / ln 2), |r| <= ln 2 / 2, and exp(r) by its Taylor
// series, whose first neglected term is below 2^-27.
QC_INLINE float exponential(float x) {
  constexpr float kMagic = 12582912.0f;       // 1.5 * 2^23: adding it rounds to an integer
  constexpr float kLn2High = 0.693359375f;    // nine bits, so n * kLn2High is exact
  constexpr float kLn2Low = -2.12194440e-4f;  // ln 2 - kLn2High
  constexpr float kLeast = -87.33654f;        // log of the smallest normal float
  const float shifted = __builtin_fmaf(x, 1.44269504f, kMagic);
  const float n = shifted - kMagic;
  const float r = __builtin_fmaf(n, -kLn2Low, __builtin_fmaf(n, -kLn2High, x));
  float p = __builtin_fmaf(1.0f / 5040, r, 1.0f / 720);
  p = __builtin_fmaf(p, r, 1.0f / 120);
  p = __builtin_fmaf(p, r, 1.0f / 24);
  p = __builtin_fmaf(p, r, 1.0f / 6);
  p = __builtin_fmaf(p, r, 0.5f);
  p = __builtin_fmaf(p, r, 1.0f);
  p = __builtin_fmaf(p, r, 1.0f);
  // The low bits of `shifted` are n; adding it to the exponent of p multiplies p by 2^n.
  const uint32_t bits = std::bit_cast<uint32_t>(p) + (std::bit_cast<uint32_t>(shifted) << 23);
  return x < kLeast ? 0.0f : std::bit_cast<float>(bits);
}

}  // namespace qcompile

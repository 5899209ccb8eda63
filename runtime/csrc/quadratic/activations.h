// Derivatives of activations, sixteen elements at a time, to be inlined into loops.
#pragma once

#include <cmath>
#include <type_traits>

#include "core/exponent.h"
#include "quadratic/walk.h"

namespace qcompile {

template <typename T>
QC_INLINE T exp_of(T x) {
  if constexpr (std::is_same_v<T, float>) {
    return exponential(x > 88.0f ? 88.0f : x);
  } else {
    return std::exp(x);
  }
}

template <typename T>
QC_INLINE T sigmoid_of(T x) {
  return 1 / (1 + exp_of(-x));
}

// Within 2e-7 for float: of small numbers by the odd polynomial of Cephes' tanhf.
template <typename T>
QC_INLINE T tanh_of(T x) {
  if constexpr (std::is_same_v<T, double>) return std::tanh(x);
  const T square = x * x;
  T p = T(-5.70498872745e-3) * square + T(2.06390887954e-2);
  p = p * square + T(-5.37397155531e-2);
  p = p * square + T(1.33314422036e-1);
  p = p * square + T(-3.33332819422e-1);
  const T small = p * square * x + x;
  const T large = 1 - 2 / (exp_of(2 * x) + 1);
  return square < T(0.390625) ? small : large;
}

// Within 2e-7 for float: Abramowitz and Stegun, 7.1.26.
template <typename T>
QC_INLINE T erf_of(T x) {
  if constexpr (std::is_same_v<T, double>) return std::erf(x);
  const T size = x < 0 ? -x : x;
  const T t = 1 / (1 + T(0.3275911) * size);
  T p = T(1.061405429) * t + T(-1.453152027);
  p = p * t + T(1.421413741);
  p = p * t + T(-0.284496736);
  p = p * t + T(0.254829592);
  const T found = 1 - p * t * exp_of(-x * x);
  return x < 0 ? -found : found;
}

template <Activation kActivation, typename T>
QC_INLINE T slope_of(T z) {
  constexpr T kRootHalf = T(0.70710678118654752440), kRootTwoOverPi = T(0.79788456080286535588);
  if constexpr (kActivation == Activation::kRelu) {
    return z <= 0 ? T(0) : T(1);
  } else if constexpr (kActivation == Activation::kGelu) {
    const T density = kRootTwoOverPi * T(0.5) * exp_of(T(-0.5) * z * z);
    return T(0.5) * (1 + erf_of(z * kRootHalf)) + z * density;
  } else if constexpr (kActivation == Activation::kGeluTanh) {
    const T inner = kRootTwoOverPi * (z + T(0.044715) * z * z * z);
    const T t = tanh_of(inner);
    const T slope = kRootTwoOverPi * (1 + 3 * T(0.044715) * z * z);
    return T(0.5) * (1 + t) + T(0.5) * z * (1 - t * t) * slope;
  } else if constexpr (kActivation == Activation::kSilu) {
    const T s = sigmoid_of(z);
    return s * (1 + z * (1 - s));
  } else if constexpr (kActivation == Activation::kSigmoid) {
    const T s = sigmoid_of(z);
    return s * (1 - s);
  } else {
    const T t = tanh_of(z);
    return 1 - t * t;
  }
}

template <Activation kActivation, typename T>
QC_INLINE void multiply_by_slope(Chunk<T>& grad, const Chunk<T>& z, int64_t rows) {
  for (int64_t i = 0; i < rows * kLanes; ++i) grad.at[i] *= slope_of<kActivation>(z.at[i]);
}

// grad becomes the gradient of z, the activation's argument.
template <typename T>
QC_INLINE void activate_backward(Activation kind, Chunk<T>& grad, const Chunk<T>& z, int64_t rows) {
  switch (kind) {
    case Activation::kNone:
      return;
    case Activation::kRelu:
      // Not a product: infinite gradients of what is off are zero.
      for (int64_t i = 0; i < rows * kLanes; ++i) grad.at[i] = z.at[i] <= 0 ? T(0) : grad.at[i];
      return;
    case Activation::kGelu:
      return multiply_by_slope<Activation::kGelu>(grad, z, rows);
    case Activation::kGeluTanh:
      return multiply_by_slope<Activation::kGeluTanh>(grad, z, rows);
    case Activation::kSilu:
      return multiply_by_slope<Activation::kSilu>(grad, z, rows);
    case Activation::kSigmoid:
      return multiply_by_slope<Activation::kSigmoid>(grad, z, rows);
    case Activation::kTanh:
      return multiply_by_slope<Activation::kTanh>(grad, z, rows);
  }
}

}  // namespace qcompile

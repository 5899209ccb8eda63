// Max-pooling of 2x2 within a span, to be inlined into loops. As torch, the first of equal values
// counts as the greatest, and NaN is greater than all.
#pragma once

#include <limits>

#include "quadratic/walk.h"

namespace qcompile {

template <typename T>
QC_INLINE bool exceeds(T value, T most) {
  return value > most || value != value;
}

// Calls body(pooled lane, its first, second, third and fourth value's lane) for a span of `size`
// pooled values, `pitch` lanes each, of planes `width` wide.
template <typename F>
QC_INLINE void for_windows(int64_t size, int64_t width, int64_t pitch, F&& body) {
  const int64_t half = width / 2;
  for (int64_t line = 0; line < size / half; ++line) {
    const int64_t to = line * half * pitch, top = 2 * line * width * pitch;
    const int64_t below = top + width * pitch;
    if (pitch == 1) {
#pragma GCC ivdep
      for (int64_t i = 0; i < half; ++i) {
        body(to + i, top + 2 * i, top + 2 * i + 1, below + 2 * i, below + 2 * i + 1);
      }
      continue;
    }
    for (int64_t i = 0; i < half; ++i) {
      const int64_t at = 2 * i * pitch;
#pragma GCC ivdep
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        body(to + i * pitch + lane, top + at + lane, top + at + pitch + lane, below + at + lane,
             below + at + pitch + lane);
      }
    }
  }
}

template <typename T>
QC_INLINE void pool(const Chunk<T>& from, int64_t size, int64_t width, int64_t pitch,
                    Chunk<T>& to) {
  for_windows(size, width, pitch,
              [&](int64_t i, int64_t a, int64_t b, int64_t c, int64_t d) QC_INLINE_LAMBDA {
                T most = from.at[a];
                most = exceeds(from.at[b], most) ? from.at[b] : most;
                most = exceeds(from.at[c], most) ? from.at[c] : most;
                to.at[i] = exceeds(from.at[d], most) ? from.at[d] : most;
              });
}

// Gives each gradient of a pooled value to the greatest of its four, of ReLU's values if `relu`.
template <typename T>
QC_INLINE void unpool(const Chunk<T>& grad, const Chunk<T>& z, bool relu, int64_t size,
                      int64_t width, int64_t pitch, Chunk<T>& to) {
  const T floor = relu ? T(0) : -std::numeric_limits<T>::infinity();
  for_windows(
      size, width, pitch,
      [&](int64_t i, int64_t a, int64_t b, int64_t c, int64_t d) QC_INLINE_LAMBDA {
        const T of_a = z.at[a] < floor ? floor : z.at[a], of_b = z.at[b] < floor ? floor : z.at[b];
        const T of_c = z.at[c] < floor ? floor : z.at[c], of_d = z.at[d] < floor ? floor : z.at[d];
        // The last that exceeds all before it.
        const bool second = exceeds(of_b, of_a);
        const T two = second ? of_b : of_a;
        const bool third = exceeds(of_c, two);
        const T three = third ? of_c : two;
        const bool fourth = exceeds(of_d, three);
        const T g = grad.at[i];
        to.at[a] = second || third || fourth ? T(0) : g;
        to.at[b] = second && !third && !fourth ? g : T(0);
        to.at[c] = third && !fourth ? g : T(0);
        to.at[d] = fourth ? g : T(0);
      });
}

}  // namespace qcompile

// Max-pooling of 2x2 within a span, to be inlined into loops. As torch, the first of equal values
// counts as the greatest, and NaN is greater than all.
#pragma once

#include <limits>

#include "quadratic/walk.h"

namespace qcompile {

// Places of the four values that make value `i` of a span, `pitch` lanes each.
struct Window {
  QC_INLINE Window(int64_t i, int64_t width)
      : top(i / (width / 2) * 2 * width + i % (width / 2) * 2), bottom(top + width) {}
  QC_INLINE int64_t place(int k) const { return (k < 2 ? top : bottom) + (k & 1); }

  int64_t top;
  int64_t bottom;
};

template <typename T>
QC_INLINE bool exceeds(T value, T most) {
  return value > most || value != value;
}

template <typename T>
QC_INLINE void pool(const Chunk<T>& from, int64_t size, int64_t width, int64_t pitch,
                    Chunk<T>& to) {
  for (int64_t i = 0; i < size; ++i) {
    const Window window(i, width);
    for (int64_t lane = 0; lane < pitch; ++lane) {
      T most = from.at[window.top * pitch + lane];
      for (int k = 1; k < 4; ++k) {
        const T value = from.at[window.place(k) * pitch + lane];
        most = exceeds(value, most) ? value : most;
      }
      to.at[i * pitch + lane] = most;
    }
  }
}

// Gives each gradient of a pooled value to the greatest of its four, of ReLU's values if `relu`.
template <typename T>
QC_INLINE void unpool(const Chunk<T>& grad, const Chunk<T>& z, bool relu, int64_t size,
                      int64_t width, int64_t pitch, Chunk<T>& to) {
  const T floor = relu ? T(0) : -std::numeric_limits<T>::infinity();
  for (int64_t i = 0; i < size; ++i) {
    const Window window(i, width);
    for (int64_t lane = 0; lane < pitch; ++lane) {
      T value[4];
      for (int k = 0; k < 4; ++k) {
        const T x = z.at[window.place(k) * pitch + lane];
        value[k] = x < floor ? floor : x;
      }
      int best = 0;
      T most = value[0];
      for (int k = 1; k < 4; ++k) {
        const bool more = exceeds(value[k], most);
        best = more ? k : best;
        most = more ? value[k] : most;
      }
      const T g = grad.at[i * pitch + lane];
      for (int k = 0; k < 4; ++k) to.at[window.place(k) * pitch + lane] = best == k ? g : T(0);
    }
  }
}

}  // namespace qcompile

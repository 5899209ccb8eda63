// Max-pooling of 2x2 within a span, to be inlined into loops. As torch, the first of equal values
// counts as the greatest, and NaN is greater than all.
#pragma once

#include <limits>

#include "quadratic/walk.h"

namespace qcompile {

// The four values of each window, side by side for all windows of a span.
template <typename T>
struct Windows {
  alignas(64) T value[4][kBlockElements / 4] = {};

  // Of planes `width` wide, `pitch` lanes to a position, `size` windows.
  QC_INLINE void read(const Chunk<T>& from, int64_t size, int64_t width, int64_t pitch) {
    for_lines(size, width, pitch, [&](int64_t k, int64_t line, int64_t to) QC_INLINE_LAMBDA {
      const T* source = from.at + line;
      T* target = value[k] + to;
      if (pitch == 1) {
        for (int64_t i = 0; i < width / 2; ++i) target[i] = source[2 * i];
        return;
      }
      for (int64_t i = 0; i < width / 2; ++i) {
        store_vector(target + i * kLanes, load_vector(source + 2 * i * kLanes));
      }
    });
  }

  QC_INLINE void write(Chunk<T>& to, int64_t size, int64_t width, int64_t pitch) const {
    for_lines(size, width, pitch, [&](int64_t k, int64_t line, int64_t from) QC_INLINE_LAMBDA {
      T* target = to.at + line;
      const T* source = value[k] + from;
      if (pitch == 1) {
        for (int64_t i = 0; i < width / 2; ++i) target[2 * i] = source[i];
        return;
      }
      for (int64_t i = 0; i < width / 2; ++i) {
        store_vector(target + 2 * i * kLanes, load_vector(source + i * kLanes));
      }
    });
  }

 private:
  // Calls body(which of the four, where it begins in the plane's line, and here) for each line.
  template <typename F>
  QC_INLINE static void for_lines(int64_t size, int64_t width, int64_t pitch, F&& body) {
    const int64_t half = width / 2;
    for (int64_t line = 0; line < size / half; ++line) {
      for (int64_t k = 0; k < 4; ++k) {
        body(k, ((2 * line + k / 2) * width + k % 2) * pitch, line * half * pitch);
      }
    }
  }
};

// One where a value exceeds the greatest so far, else zero: selections alone, which vectorise.
template <typename T>
QC_INLINE T exceeds(T value, T most) {
  const T greater = value > most ? T(1) : T(0);
  return value == value ? greater : T(1);
}

template <typename T>
QC_INLINE void pool(const Chunk<T>& from, int64_t size, int64_t width, int64_t pitch,
                    Chunk<T>& to) {
  Windows<T> windows;
  windows.read(from, size, width, pitch);
  const auto& value = windows.value;
  for (int64_t i = 0; i < size * pitch; ++i) {
    T most = value[0][i];
    for (int k = 1; k < 4; ++k) most = exceeds(value[k][i], most) > 0 ? value[k][i] : most;
    to.at[i] = most;
  }
}

// Gives each gradient of a pooled value to the greatest of its four, of ReLU's values if `relu`.
template <typename T>
QC_INLINE void unpool(const Chunk<T>& grad, const Chunk<T>& z, bool relu, int64_t size,
                      int64_t width, int64_t pitch, Chunk<T>& to) {
  const T floor = relu ? T(0) : -std::numeric_limits<T>::infinity();
  Windows<T> windows;
  windows.read(z, size, width, pitch);
  auto& value = windows.value;
  for (int64_t i = 0; i < size * pitch; ++i) {
    const T a = value[0][i] < floor ? floor : value[0][i];
    const T b = value[1][i] < floor ? floor : value[1][i];
    const T c = value[2][i] < floor ? floor : value[2][i];
    const T d = value[3][i] < floor ? floor : value[3][i];
    // The last that exceeds all before it.
    const T second = exceeds(b, a);
    const T two = second > 0 ? b : a;
    const T third = exceeds(c, two);
    const T three = third > 0 ? c : two;
    const T fourth = exceeds(d, three);
    const T g = grad.at[i];
    const T later = third + fourth;
    value[0][i] = second + later > 0 ? T(0) : g;
    value[1][i] = second - later > 0 ? g : T(0);
    value[2][i] = third - fourth > 0 ? g : T(0);
    value[3][i] = fourth > 0 ? g : T(0);
  }
  windows.write(to, size, width, pitch);
}

}  // namespace qcompile

// How a task walks through its channels: rows of sixteen elements, in blocks that fit a cache.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <type_traits>

#include "core/lanes.h"
#include "quadratic/block.h"

namespace qcompile {

template <typename T>
struct VectorOf {
  typedef T type __attribute__((vector_size(kLanes * sizeof(T))));
};
template <typename T>
using Vector = typename VectorOf<T>::type;

template <typename T>
QC_INLINE Vector<T> load_vector(const T* from) {
  Vector<T> lanes;
  std::memcpy(&lanes, from, sizeof lanes);
  return lanes;
}

template <typename T>
QC_INLINE void store_vector(T* to, Vector<T> lanes) {
  std::memcpy(to, &lanes, sizeof lanes);
}

// A span fits into one of these of each tensor, which stay in the first cache.
constexpr int64_t kBlockRows = 32;
constexpr int64_t kBlockElements = kBlockRows * kLanes;

// Elements of one block of one tensor.
template <typename T>
struct alignas(64) Chunk {
  T at[kBlockElements];

  QC_INLINE Vector<T> row(int64_t r) const { return load_vector(at + r * kLanes); }
  QC_INLINE void set(int64_t r, Vector<T> lanes) { store_vector(at + r * kLanes, lanes); }
};

template <typename S, typename T>
QC_INLINE void widen(const S* from, T* to, int64_t size) {
  if constexpr (std::is_same_v<S, T>) {
    std::memcpy(to, from, static_cast<size_t>(size) * sizeof(T));
  } else {
    static_assert(std::is_same_v<S, uint16_t> && std::is_same_v<T, float>);
    for (int64_t i = 0; i < size; ++i) {
      const uint32_t bits = static_cast<uint32_t>(from[i]) << 16;
      std::memcpy(to + i, &bits, sizeof bits);
    }
  }
}

template <typename S, typename T>
QC_INLINE void narrow(const T* from, S* to, int64_t size) {
  if constexpr (std::is_same_v<S, T>) {
    std::memcpy(to, from, static_cast<size_t>(size) * sizeof(T));
  } else {
    for (int64_t i = 0; i < size; ++i) {
      uint32_t bits;
      std::memcpy(&bits, from + i, sizeof bits);
      const bool nan = from[i] != from[i];
      // To the nearest, ties to even.
      to[i] = static_cast<uint16_t>(nan ? 0x7fc0u : (bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
    }
  }
}

// Part of a task: elements of its channel, or positions of its sixteen.
struct Span {
  int64_t begin;
  int64_t size;
  int64_t rows;     // of sixteen elements
  int64_t present;  // elements; the rest of the last row belongs to nobody
};

// Where channels are apart, a task has one of them, its elements sixteen to a row. Where they are
// adjacent (inner is 1), it has sixteen, one to a lane.
class Walk {
 public:
  // A pooling of 2x2 over planes this wide, unless zero, keeps each pair of lines in one span.
  QC_INLINE Walk(const BlockShape& shape, int64_t task, int64_t pool_width)
      : shape_(shape),
        planes_(shape.inner > 1),
        first_(planes_ ? task : task * kLanes),
        width_(planes_ ? kLanes : std::min<int64_t>(kLanes, shape.channels - first_)),
        size_(planes_ ? shape.count() : shape.outer),
        step_(span_size(planes_, pool_width)) {}

  static int64_t tasks(const BlockShape& shape) {
    return shape.inner > 1 ? shape.channels : (shape.channels + kLanes - 1) / kLanes;
  }

  // Elements or positions of a span; zero if two lines do not fit.
  static int64_t span_size(bool planes, int64_t pool_width) {
    const int64_t most = planes ? kBlockElements : kBlockRows;
    if (pool_width == 0) return most;
    const int64_t lines = planes ? std::lcm(2 * pool_width, kLanes) : 2 * pool_width;
    return most / lines * lines;
  }

  // Rows of all spans together.
  int64_t rows() const { return planes_ ? (size_ + kLanes - 1) / kLanes : size_; }

  // Calls body(span) for spans one after another.
  template <typename F>
  QC_INLINE void for_spans(F&& body) const {
    for (int64_t begin = 0; begin < size_; begin += step_) {
      body(span(begin, std::min(step_, size_ - begin)));
    }
  }

  // What a pooling makes of a span.
  QC_INLINE Span pooled(const Span& from) const { return span(from.begin / 4, from.size / 4); }

  // Constants of the task's channels, one to a lane, zero where there is none.
  template <typename T>
  QC_INLINE Vector<T> lanes(const T* constants) const {
    alignas(64) T found[kLanes] = {};
    for (int64_t i = 0; i < width_; ++i) found[i] = constants[first_ + (planes_ ? 0 : i)];
    return load_vector(found);
  }

  // Stores one number for each channel: its lanes' sum over `divisor`.
  template <typename T>
  QC_INLINE void store_constants(Vector<double> sums, T* to, double divisor = 1) const {
    alignas(64) double part[kLanes];
    store_vector(part, sums);
    if (!planes_) {
      for (int64_t i = 0; i < width_; ++i) to[first_ + i] = static_cast<T>(part[i] / divisor);
      return;
    }
    for (int width = kLanes / 2; width > 0; width /= 2) {
      for (int i = 0; i < width; ++i) part[i] += part[i + width];
    }
    to[first_] = static_cast<T>(part[0] / divisor);
  }

  // First channel, and how many.
  int64_t first() const { return first_; }
  int64_t channels() const { return planes_ ? 1 : width_; }
  // Lanes from one position to the next.
  int64_t pitch() const { return planes_ ? 1 : kLanes; }

  // Reads a span; zero where there is nothing.
  template <typename S, typename T>
  QC_INLINE void load(const S* from, const Span& span, int64_t inner, Chunk<T>& to) const {
    if (!planes_) {
      for (int64_t i = 0; i < span.size; ++i) {
        const S* source = from + (span.begin + i) * shape_.channels + first_;
        T* target = to.at + i * kLanes;
        if (width_ == kLanes) {
          widen(source, target, kLanes);
        } else {
          to.set(i, Vector<T>{});
          widen(source, target, width_);
        }
      }
      return;
    }
    for (Run run(span, inner); run.size > 0; run.next(span, inner)) {
      widen(from + run.at(shape_.channels, first_, inner), to.at + run.done, run.size);
    }
    for (int64_t i = span.present; i < span.rows * kLanes; ++i) to.at[i] = 0;
  }

  template <typename S, typename T>
  QC_INLINE void store(const Chunk<T>& from, const Span& span, int64_t inner, S* to) const {
    if (!planes_) {
      for (int64_t i = 0; i < span.size; ++i) {
        S* target = to + (span.begin + i) * shape_.channels + first_;
        const T* source = from.at + i * kLanes;
        if (width_ == kLanes) {
          narrow(source, target, kLanes);
        } else {
          narrow(source, target, width_);
        }
      }
      return;
    }
    for (Run run(span, inner); run.size > 0; run.next(span, inner)) {
      narrow(from.at + run.done, to + run.at(shape_.channels, first_, inner), run.size);
    }
  }

 private:
  // Adjacent elements of one channel in planes of `inner`.
  struct Run {
    QC_INLINE Run(const Span& span, int64_t inner)
        : outer(span.begin / inner), inside(span.begin % inner) {
      size = std::min(span.size, inner - inside);
    }
    QC_INLINE void next(const Span& span, int64_t inner) {
      done += size;
      inside = 0;
      ++outer;
      size = std::min(span.size - done, inner);
    }
    QC_INLINE int64_t at(int64_t channels, int64_t channel, int64_t inner) const {
      return (outer * channels + channel) * inner + inside;
    }
    int64_t outer;
    int64_t inside;
    int64_t done = 0;
    int64_t size;
  };

  QC_INLINE Span span(int64_t begin, int64_t size) const {
    const int64_t present = planes_ ? size : size * kLanes;
    return {begin, size, (present + kLanes - 1) / kLanes, present};
  }

  BlockShape shape_;
  bool planes_;
  int64_t first_;
  int64_t width_;
  int64_t size_;
  int64_t step_;
};

}  // namespace qcompile

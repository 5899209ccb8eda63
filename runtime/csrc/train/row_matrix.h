// Rows of a parameter and of its averages, in either storage, read and written element by element.
#pragma once

#include <cstdint>

#include "core/random.h"
#include "train/storage.h"

namespace qcompile {

struct FloatCells {
  float* at;

  QC_INLINE float load(int64_t j) const { return at[j]; }
  QC_INLINE void store(int64_t j, float value, uint32_t) const { at[j] = value; }
};

// A weight: exact, in two halves.
struct SplitCells {
  uint16_t* high;
  int16_t* low;

  QC_INLINE float load(int64_t j) const { return join_float(high[j], low[j]); }
  QC_INLINE void store(int64_t j, float value, uint32_t) const {
    const SplitFloat halves = split_float(value);
    high[j] = halves.high;
    low[j] = halves.low;
  }
};

// An average: rounded at random, by 16 random bits.
struct RoundedCells {
  uint16_t* at;

  QC_INLINE float load(int64_t j) const { return from_bfloat16(at[j]); }
  QC_INLINE void store(int64_t j, float value, uint32_t random) const {
    at[j] = to_bfloat16(value, random);
  }
};

// A parameter [rows, depth]; for bfloat16 the value is the high half and `residual` the low one.
struct RowMatrix {
  void* value = nullptr;
  int16_t* residual = nullptr;
  int64_t rows = 0;
  int64_t depth = 0;
  Storage storage = Storage::kFloat32;
};

template <Storage kStorage>
QC_INLINE auto weight_cells(const RowMatrix& matrix, int64_t row) {
  const int64_t at = row * matrix.depth;
  if constexpr (kStorage == Storage::kFloat32) {
    return FloatCells{static_cast<float*>(matrix.value) + at};
  } else {
    return SplitCells{static_cast<uint16_t*>(matrix.value) + at, matrix.residual + at};
  }
}

template <Storage kStorage>
QC_INLINE auto average_cells(void* average, int64_t at) {
  if constexpr (kStorage == Storage::kFloat32) {
    return FloatCells{static_cast<float*>(average) + at};
  } else {
    return RoundedCells{static_cast<uint16_t*>(average) + at};
  }
}

// Random bits of a row's elements in one phase (0: idle, 1: gradient) of a step.
QC_INLINE uint32_t row_key(uint64_t step, uint64_t phase, uint64_t row) {
  return static_cast<uint32_t>(random_bits(step, phase, row));
}

// Has the first bytes of a row on their way from memory while another row is worked on.
template <typename T>
QC_INLINE void prefetch_row(const T* data, int64_t row, int64_t depth) {
  const char* at = reinterpret_cast<const char*>(data + row * depth);
  for (int64_t byte = 0; byte < depth * static_cast<int64_t>(sizeof(T)); byte += 64) {
    __builtin_prefetch(at + byte, 1);
  }
}

}  // namespace qcompile

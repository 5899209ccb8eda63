// How the weights of a matrix lie in memory: float32, or bfloat16 with the rest of a float32 apart.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

#include "core/isa.h"

namespace qcompile {

enum class Storage : uint8_t { kFloat32, kBFloat16 };

// A matrix of contiguous rows, to be read.
struct RowsView {
  const void* data = nullptr;
  Storage storage = Storage::kFloat32;
  int64_t depth = 0;
};

QC_INLINE float from_bfloat16(uint16_t half) {
  return std::bit_cast<float>(static_cast<uint32_t>(half) << 16);
}

// Nearest, ties to even; not for NaN, of which it may make something else.
QC_INLINE uint16_t to_bfloat16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// One of the two neighbours, with the probability that makes `value` the expectation; `random` has
// 16 random bits. Averages that change by less than half a unit at a time still move.
QC_INLINE uint16_t to_bfloat16(float value, uint32_t random) {
  return static_cast<uint16_t>((std::bit_cast<uint32_t>(value) + random) >> 16);
}

// A float32 as its nearest bfloat16 and a signed remainder, the difference of their bits.
struct SplitFloat {
  uint16_t high;
  int16_t low;
};

QC_INLINE SplitFloat split_float(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const auto high = static_cast<uint16_t>((bits + 0x8000u) >> 16);
  return {high, static_cast<int16_t>(static_cast<uint16_t>(bits))};
}

QC_INLINE float join_float(uint16_t high, int16_t low) {
  return std::bit_cast<float>((static_cast<uint32_t>(high) << 16) +
                              static_cast<uint32_t>(static_cast<int32_t>(low)));
}

// 32 random bits of an element from its row's key, the low half of random_bits(seed, step, row).
// Two rounds of multiply and shift, which vectorise (constants of C. Wellons, "prospecting for
// hash functions", 2018).
QC_INLINE uint32_t element_bits(uint32_t key, uint32_t element) {
  uint32_t x = key + element * 0x9e3779b9u;
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return x ^ (x >> 16);
}

// Row `row` of `rows` as float32 [depth].
QC_INLINE void load_row(const RowsView& rows, int64_t row, float* to) {
  const int64_t at = row * rows.depth;
  if (rows.storage == Storage::kFloat32) {
    std::memcpy(to, static_cast<const float*>(rows.data) + at, rows.depth * sizeof(float));
    return;
  }
  const uint16_t* from = static_cast<const uint16_t*>(rows.data) + at;
  for (int64_t j = 0; j < rows.depth; ++j) to[j] = from_bfloat16(from[j]);
}

}  // namespace qcompile

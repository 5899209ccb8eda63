#include "index/layout.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

namespace qcompile {
namespace {

constexpr float kSmallest = std::numeric_limits<float>::min();

bool finite(const float* values, int64_t count) {
  bool good = true;
  for (int64_t i = 0; i < count; ++i) good &= std::isfinite(values[i]);
  return good;
}

QC_INLINE double quantise_body(const float* values, int64_t count, float* scale,
                               int8_t* quantised) {
  uint32_t largest = 0;  // bits of magnitudes order like them, and integers are quick to compare
  for (int64_t j = 0; j < count; ++j) {
    largest = std::max(largest, std::bit_cast<uint32_t>(values[j]) & 0x7FFFFFFF);
  }
  const float step = std::bit_cast<float>(largest) / 127.0f;
  *scale = step < kSmallest ? 0.0f : step;
  if (*scale == 0) {
    std::fill_n(quantised, count, static_cast<int8_t>(0));
  } else {
    for (int64_t j = 0; j < count; ++j) {
      quantised[j] = static_cast<int8_t>(std::nearbyint(values[j] / *scale));
    }
  }
  double total = 0;
  for (int64_t j = 0; j < count; ++j) {
    // Exact: a float less the product of a float and seven bits.
    const double residual =
        static_cast<double>(values[j]) - static_cast<double>(*scale) * quantised[j];
    total += residual * residual;
  }
  return std::sqrt(total) * (1 + static_cast<double>(count + 4) * 0x1p-52);
}

double quantise_scalar(const float* values, int64_t count, float* scale, int8_t* quantised) {
  return quantise_body(values, count, scale, quantised);
}

QC_AVX2 double quantise_avx2(const float* values, int64_t count, float* scale, int8_t* quantised) {
  return quantise_body(values, count, scale, quantised);
}

void pack_block(const float* weight, int64_t first, int64_t last, int64_t depth, int8_t* packed,
                float* scale, float* error, int8_t* row) {
  std::memset(packed, 0, static_cast<size_t>(step_count(depth)) * kStepBytes);
  for (int64_t r = first; r < last; ++r) {
    error[r] = round_up(quantise(weight + r * depth, depth, scale + r, row, best_isa()));
    int8_t* lane = packed + (r - first) * kBlockDepth;
    for (int64_t j = 0; j < depth; ++j) {
      lane[j / kBlockDepth * kStepBytes + j % kBlockDepth] = row[j];
    }
  }
}

}  // namespace

float round_up(double value) {
  if (value == 0) return 0;
  float nearest = static_cast<float>(value);
  if (static_cast<double>(nearest) < value) {
    nearest = std::nextafter(nearest, std::numeric_limits<float>::infinity());
  }
  // No subnormal bound: a processor that flushes those to zero would take it for none.
  return std::max(nearest, kSmallest);
}

double quantise(const float* values, int64_t count, float* scale, int8_t* quantised, Isa isa) {
  if (isa == Isa::kScalar) return quantise_scalar(values, count, scale, quantised);
  return quantise_avx2(values, count, scale, quantised);
}

void pack_blocks(const float* weight, int64_t rows, int64_t depth, float* scale, float* error,
                 const Executor& executor, FunctionRef<void(int64_t, const int8_t*)> take) {
  parallel_for(executor, block_count(rows), 64, [&](int64_t begin, int64_t end) {
    std::vector<int8_t> row(static_cast<size_t>(depth));
    std::vector<int8_t> values(static_cast<size_t>(step_count(depth) * kStepBytes));
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * kBlockRows;
      const int64_t last = std::min(first + kBlockRows, rows);
      for (int64_t r = first; r < last; ++r) {
        if (finite(weight + r * depth, depth)) continue;
        throw std::invalid_argument("pack_rows: row " + std::to_string(r) +
                                    " of the weight holds NaN or infinity");
      }
      pack_block(weight, first, last, depth, values.data(), scale, error, row.data());
      take(block, values.data());
    }
  });
}

void pack_rows(const float* weight, int64_t rows, int64_t depth, int8_t* packed, float* scale,
               float* error, const Executor& executor) {
  const int64_t bytes = step_count(depth) * kStepBytes;
  pack_blocks(weight, rows, depth, scale, error, executor,
              [&](int64_t block, const int8_t* values) {
                std::copy_n(values, bytes, packed + block * bytes);
              });
}

}  // namespace qcompile

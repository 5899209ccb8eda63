#include "index/head.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>

namespace qcompile {
namespace {

constexpr int64_t kLeastRoughBytes = 4 << 20;  // packed rows that a second-level cache cannot hold
constexpr int64_t kRegisterSteps = 16;         // steps that a tile register reads at once

void require_bound(const char* name, int64_t row, float value) {
  if (value == 0 || (value > 0 && std::isnormal(value))) return;
  throw std::invalid_argument(std::string(name) + "[" + std::to_string(row) + "] is " +
                              std::to_string(value) + ", expected zero or a normal number above");
}

float norm_of(double squares) { return round_up(std::sqrt(squares) * (1 + 0x1p-50)); }

}  // namespace

Head::Head(const Dense& dense) : dense_(dense) {}

Head::Head(const Dense& dense, const Packed& packed, const Executor& executor, RoughRows rough)
    : dense_(dense), packed_(packed) {
  if (dense.depth > kMostPackedDepth) return;
  check(packed);
  copy_last_tile(packed);
  const int64_t tiles = ceil_div(dense.rows, kTileRows), steps = step_count(dense.depth);
  bounds_.resize(static_cast<size_t>(tiles));
  const int64_t block_bytes = rough_block_bytes(dense.depth);
  const bool large = tiles * kTileBlocks * steps * kStepBytes >= kLeastRoughBytes;
  if (rough == RoughRows::kAlways || (rough == RoughRows::kIfLarge && large)) {
    rough_ = RoughPlane(tiles * kTileBlocks * block_bytes);
  }
  parallel_for(executor, tiles, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      RowBounds& bounds = bounds_[static_cast<size_t>(i)];
      const Tile tile = this->tile(i);
      for (int64_t row = 0; row < tile.rows; ++row) {
        if (tile.scale[row] == 0) continue;
        const double error = static_cast<double>(packed.error[tile.first + row]) / tile.scale[row];
        bounds.error = std::max(bounds.error, round_up(error * (1 + 0x1p-50)));
      }
      float difference = 0;
      for (int64_t b = 0; b < kTileBlocks; ++b) {
        const int8_t* block = tile.packed + b * steps * kStepBytes;
        RowSums sums[kBlockRows];
        sum_block(block, steps, sums, best_isa());
        for (const RowSums& sum : sums) {
          bounds.norm = std::max(bounds.norm, norm_of(sum.squares));
          bounds.rough_norm = std::max(bounds.rough_norm, norm_of(sum.rough_squares));
          difference = std::max(difference, norm_of(sum.difference));
        }
        if (!rough_.empty()) {
          uint8_t* to = rough_.data() + (i * kTileBlocks + b) * block_bytes;
          split_block(block, steps, to, best_isa());
        }
      }
      bounds.rough_error = round_up(static_cast<double>(bounds.error) + difference);
    }
  });
}

Tile Head::tile(int64_t index) const {
  const int64_t first = index * kTileRows;
  const RowBounds& bounds = bounds_[static_cast<size_t>(index)];
  if (index + 1 == tiles()) {
    return {first, rows() - first, last_packed_.data(), last_scale_, last_bias_, bounds};
  }
  const int64_t bytes = kTileBlocks * step_count(depth()) * kStepBytes;
  return {
      first, kTileRows, packed_.packed + index * bytes, packed_.scale + first, dense_.bias + first,
      bounds};
}

void Head::check(const Packed& packed) {
  for (int64_t row = 0; row < rows(); ++row) {
    require_bound("scale", row, packed.scale[row]);
    require_bound("error", row, packed.error[row]);
    if (packed.scale[row] == 0) unscaled_error_ = std::max(unscaled_error_, packed.error[row]);
  }
}

void Head::copy_last_tile(const Packed& packed) {
  const int64_t first = (ceil_div(rows(), kTileRows) - 1) * kTileRows;
  const int64_t block_bytes = step_count(depth()) * kStepBytes;
  const int64_t from = first / kBlockRows * block_bytes, to = block_count(rows()) * block_bytes;
  last_packed_.resize(static_cast<size_t>(kTileBlocks * block_bytes + kRegisterSteps * kStepBytes));
  std::copy(packed.packed + from, packed.packed + to, last_packed_.begin());
  std::fill_n(last_bias_, kTileRows, -std::numeric_limits<float>::infinity());
  std::copy(packed.scale + first, packed.scale + rows(), last_scale_);
  std::copy(dense_.bias + first, dense_.bias + rows(), last_bias_);
}

}  // namespace qcompile

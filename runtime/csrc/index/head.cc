#include "index/head.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

namespace qcompile {
namespace {

// Packed rows of more bytes do not stay in a second-level cache: reading half of them always pays.
constexpr int64_t kCachedBytes = 4 << 20;
// Of fewer it pays for few answers, each of which makes rows like it worth a second look.
constexpr int64_t kLeastRoughBytes = 1 << 20;
constexpr int64_t kFewBest = 2;
constexpr int64_t kRegisterSteps = 16;  // steps that a tile register reads at once

void require_bound(const char* name, int64_t row, float value) {
  if (value == 0 || (value > 0 && std::isnormal(value))) return;
  throw std::invalid_argument(std::string(name) + "[" + std::to_string(row) + "] is " +
                              std::to_string(value) + ", expected zero or a normal number above");
}

float norm_of(double squares) { return round_up(std::sqrt(squares) * (1 + 0x1p-50)); }

int64_t rough_best_of(RoughRows rough, int64_t packed_bytes) {
  const bool always = rough == RoughRows::kAlways;
  if (always || (rough == RoughRows::kIfLarge && packed_bytes >= kCachedBytes)) {
    return std::numeric_limits<int64_t>::max();
  }
  return rough == RoughRows::kIfLarge && packed_bytes >= kLeastRoughBytes ? kFewBest : 0;
}

}  // namespace

Head::Head(const Dense& dense) : dense_(dense) {}

Head::Head(const Dense& dense, const Packed& packed, const Executor& executor, RoughRows rough)
    : dense_(dense), packed_(packed) {
  const bool alone = dense.weight == nullptr && dense.half == nullptr;
  if (alone) dense_.quantised = packed;
  if (dense.depth > kMostPackedDepth) return;
  check(packed);
  copy_last_tile(packed);
  const int64_t tiles = ceil_div(dense.rows, kTileRows), bytes = plane_bytes(dense.depth);
  bounds_.resize(static_cast<size_t>(tiles));
  rough_best_ = rough_best_of(rough, 2 * tiles * kTileBlocks * bytes);
  parallel_for(executor, tiles, 64, [&](int64_t begin, int64_t end) {
    std::vector<int8_t> rows(static_cast<size_t>(merged_bytes()));
    for (int64_t i = begin; i < end; ++i) {
      RowBounds& bounds = bounds_[static_cast<size_t>(i)];
      const Tile tile = this->tile(i);
      for (int64_t row = 0; row < tile.rows && !alone; ++row) {
        if (tile.scale[row] == 0) continue;
        const double error = static_cast<double>(packed.error[tile.first + row]) / tile.scale[row];
        bounds.error = std::max(bounds.error, round_up(error * (1 + 0x1p-50)));
      }
      merge(tile, rows.data(), best_isa());
      float difference = 0;
      for (int64_t b = 0; b < kTileBlocks; ++b) {
        RowSums sums[kBlockRows];
        sum_block(rows.data() + 2 * b * bytes, steps(), sums, best_isa());
        for (const RowSums& sum : sums) {
          bounds.norm = std::max(bounds.norm, norm_of(sum.squares));
          bounds.rough_norm = std::max(bounds.rough_norm, norm_of(sum.rough_squares));
          difference = std::max(difference, norm_of(sum.difference));
        }
      }
      bounds.rough_error = round_up(static_cast<double>(bounds.error) + difference);
    }
  });
  greatest_norm_ = unscaled_error_;
  for (int64_t i = 0; i < tiles; ++i) {
    const Tile tile = this->tile(i);
    const double norm = static_cast<double>(tile.bounds.norm) + tile.bounds.error;
    const float scale = *std::max_element(tile.scale, tile.scale + tile.rows);
    greatest_norm_ = std::max(greatest_norm_, round_up(scale * norm));
  }
}

int64_t Head::merged_bytes() const {
  return 2 * kTileBlocks * plane_bytes(depth()) + kRegisterSteps * kStepBytes;
}

void Head::merge(const Tile& tile, int8_t* rows, Isa isa) const {
  merge_planes(tile.high, tile.low, kTileBlocks * plane_bytes(depth()), rows, isa);
}

Tile Head::tile(int64_t index) const {
  const int64_t first = index * kTileRows;
  const RowBounds& bounds = bounds_[static_cast<size_t>(index)];
  if (index + 1 == tiles()) {
    const uint8_t* low = fine() ? last_low_.data() : nullptr;
    return {first, rows() - first, last_high_.data(), low, last_scale_, last_bias_, bounds};
  }
  const int64_t from = index * kTileBlocks * plane_bytes(depth());
  const uint8_t* low = fine() ? packed_.low + from : nullptr;
  return {first, kTileRows, packed_.high + from, low, packed_.scale + first, dense_.bias + first,
          bounds};
}

void Head::check(const Packed& packed) {
  for (int64_t row = 0; row < rows(); ++row) {
    require_bound("scale", row, packed.scale[row]);
    require_bound("error", row, packed.error[row]);
    if (dense_.quantised.scale != nullptr) continue;  // then they are the layer's rows themselves
    if (packed.scale[row] == 0) unscaled_error_ = std::max(unscaled_error_, packed.error[row]);
  }
}

void Head::copy_last_tile(const Packed& packed) {
  const int64_t first = (ceil_div(rows(), kTileRows) - 1) * kTileRows, bytes = plane_bytes(depth());
  const int64_t from = first / kBlockRows * bytes, to = block_count(rows()) * bytes;
  const auto copy = [&](const uint8_t* plane, uint8_t zero, std::vector<uint8_t>& last) {
    last.assign(static_cast<size_t>(kTileBlocks * bytes), zero);
    std::copy(plane + from, plane + to, last.begin());
  };
  copy(packed.high, 0x88, last_high_);
  if (fine()) copy(packed.low, 0, last_low_);
  std::fill_n(last_bias_, kTileRows, -std::numeric_limits<float>::infinity());
  std::copy(packed.scale + first, packed.scale + rows(), last_scale_);
  std::copy(dense_.bias + first, dense_.bias + rows(), last_bias_);
}

}  // namespace qcompile

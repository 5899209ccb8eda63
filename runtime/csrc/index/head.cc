#include "index/head.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

namespace qcompile {
namespace {

// A score of minus infinity is scanned as the lowest float: infinities have no usable bound.
constexpr float kLowest = std::numeric_limits<float>::lowest();

void require_bound(const char* name, int64_t row, float value) {
  if (value >= 0 && std::isfinite(value)) return;
  throw std::invalid_argument(std::string(name) + "[" + std::to_string(row) + "] is " +
                              std::to_string(value) + ", expected a finite value >= 0");
}

BlockFigures make_figures(const Dense& dense, const Packed& packed, int64_t block) {
  BlockFigures figures{};
  const int64_t steps = step_count(dense.depth);
  const int8_t* values = packed.packed + block * steps * kStepBytes;
  for (int lane = 0; lane < kBlockRows; ++lane) {
    const int64_t row = block * kBlockRows + lane;
    if (row >= dense.rows) {
      figures.bias[lane] = kLowest;
      continue;
    }
    require_bound("scale", row, packed.scale[row]);
    require_bound("error", row, packed.error[row]);
    int64_t sum = 0, squares = 0;
    for (int64_t step = 0; step < steps; ++step) {
      for (int i = 0; i < kBlockDepth; ++i) {
        const int64_t q = values[step * kStepBytes + lane * kBlockDepth + i];
        sum += q;
        squares += q * q;
      }
    }
    figures.scale[lane] = packed.scale[row];
    figures.bias[lane] = std::max(dense.bias[row], kLowest);
    figures.error[lane] = packed.error[row];
    figures.norm[lane] = round_up(static_cast<double>(packed.scale[row]) *
                                  std::sqrt(static_cast<double>(squares)) * (1 + 0x1p-50));
    figures.correction[lane] = static_cast<int32_t>(-128 * sum);
  }
  return figures;
}

}  // namespace

Head::Head(const Dense& dense) : dense_(dense) {}

Head::Head(const Dense& dense, const Packed& packed, const Executor& executor)
    : dense_(dense), packed_(packed.packed) {
  if (dense.depth > kMostPackedDepth) return;
  figures_.resize(static_cast<size_t>(block_count(dense.rows)));
  parallel_for(executor, block_count(dense.rows), 256, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      figures_[static_cast<size_t>(block)] = make_figures(dense, packed, block);
    }
  });
  for (const BlockFigures& figures : figures_) {
    block_error_.push_back(*std::ranges::max_element(figures.error));
    block_norm_.push_back(*std::ranges::max_element(figures.norm));
  }
  // Whole vectors of them may be read.
  block_error_.resize(figures_.size() + kBlockRows);
  block_norm_.resize(figures_.size() + kBlockRows);
}

}  // namespace qcompile

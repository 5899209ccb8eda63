#include <algorithm>
#include <cstring>

#include "train/bfloat16_kernels.h"
#include "train/block_products.h"

namespace qcompile {
namespace {

constexpr int64_t kTile = 16;   // what rows and columns of a product are a multiple of
constexpr int64_t kDepth = 32;  // what its depth is a multiple of
constexpr int64_t kAhead = 8;   // rows that are asked for before they are read

// Operands are padded with zeros. Hidden activations and factors are rounded to bfloat16, once
// each, as the matrix instructions take them; sums are float32.
class BFloat16Products final : public BlockProducts {
 public:
  BFloat16Products(const float* hidden, int64_t examples, const OutputLayer& layer, Isa isa)
      : BlockProducts(hidden, examples, layer),
        kernels_(bfloat16_kernels(isa)),
        depth_(round_up(layer.depth(), kDepth)),
        batch_(round_up(examples, kDepth)) {
    Buffer<uint16_t> halves;
    uint16_t* rows = halves.resize(batch_ * depth_);
    std::fill(rows, rows + batch_ * depth_, uint16_t{0});
    for (int64_t e = 0; e < examples; ++e) {
      kernels_.round(hidden + e * layer.depth(), rows + e * depth_, layer.depth());
    }
    uint16_t* by_depth = by_depth_.resize(depth_ * stride_);
    for (int64_t j = 0; j < depth_; ++j) {
      for (int64_t e = 0; e < stride_; ++e) {
        by_depth[(j / 2 * stride_ + e) * 2 + j % 2] = rows[e * depth_ + j];
      }
    }
    uint16_t* by_example = by_example_.resize(batch_ * sum_stride_);
    for (int64_t e = 0; e < batch_; e += 2) {
      kernels_.interleave(rows + e * depth_, rows + (e + 1) * depth_, by_example + e * sum_stride_,
                          sum_stride_);
    }
  }

  void logits(std::span<const uint32_t> ids, float* logits, Scratch& scratch) const override {
    const int64_t rows = static_cast<int64_t>(ids.size());
    const uint16_t* block = gather(ids, scratch);
    scratch.rows = block;
    kernels_.multiply(round_up(rows, kTile), stride_, depth_, block, depth_, by_depth_.data(),
                      logits, stride_, false);
  }

  void add_weights(int64_t rows, float* factors, float* sums, Scratch& scratch) const override {
    const int64_t padded = round_up(rows, kDepth);
    std::fill(factors + rows * stride_, factors + padded * stride_, 0.0f);
    uint16_t* turned = scratch.halves.resize(kRows * (stride_ + sum_stride_));
    uint16_t* pairs = turned + stride_ * kRows;
    kernels_.round_transposed(factors, stride_, padded, stride_, turned, kRows);
    const auto* block = static_cast<const uint16_t*>(scratch.rows);
    const int64_t whole = rows / 2 * 2;
    for (int64_t r = 0; r < whole; r += 2) {
      kernels_.interleave(block + r * depth_, block + (r + 1) * depth_, pairs + r * sum_stride_,
                          sum_stride_);
    }
    std::fill(pairs + whole * sum_stride_, pairs + padded * sum_stride_, uint16_t{0});
    if (whole < rows) {
      for (int64_t j = 0; j < sum_stride_; ++j) {
        pairs[whole * sum_stride_ + 2 * j] = block[whole * depth_ + j];
      }
    }
    kernels_.multiply(stride_, sum_stride_, padded, turned, kRows, pairs, sums, sum_stride_, true);
  }

  void gradients(int64_t rows, const float* factors, float* gradients,
                 Scratch& scratch) const override {
    const int64_t depth = layer_.depth(), padded = round_up(rows, kTile);
    uint16_t* left = scratch.halves.resize(kRows * batch_);
    for (int64_t r = 0; r < rows; ++r) {
      kernels_.round(factors + r * stride_, left + r * batch_, stride_);
      std::fill(left + r * batch_ + stride_, left + (r + 1) * batch_, uint16_t{0});
    }
    std::fill(left + rows * batch_, left + padded * batch_, uint16_t{0});
    const bool direct = padded == rows && depth == sum_stride_;
    float* product = direct ? gradients : scratch.floats.resize(kRows * sum_stride_);
    kernels_.multiply(padded, sum_stride_, batch_, left, batch_, by_example_.data(), product,
                      sum_stride_, false);
    for (int64_t r = 0; r < rows && !direct; ++r) {
      std::copy_n(product + r * sum_stride_, depth, gradients + r * depth);
    }
  }

 private:
  const uint16_t* gather(std::span<const uint32_t> ids, Scratch& scratch) const {
    const int64_t rows = static_cast<int64_t>(ids.size()), depth = layer_.depth();
    const auto* weight = static_cast<const uint16_t*>(layer_.weight.data);
    const bool neighbours = int64_t{ids.back()} - ids.front() + 1 == rows;
    if (neighbours && depth == depth_ && rows % kTile == 0) return weight + ids.front() * depth;
    uint16_t* block = scratch.more_halves.resize(kRows * depth_);
    for (int64_t i = 0; i < rows; ++i) {
      if (i + kAhead < rows) layer_.prefetch(ids[i + kAhead]);
      std::copy_n(weight + ids[i] * depth, depth, block + i * depth_);
      std::fill(block + i * depth_ + depth, block + (i + 1) * depth_, uint16_t{0});
    }
    std::fill(block + rows * depth_, block + round_up(rows, kTile) * depth_, uint16_t{0});
    return block;
  }

  const BFloat16Kernels& kernels_;
  int64_t depth_;                // of the layer, rounded up
  int64_t batch_;                // examples, rounded up
  Buffer<uint16_t> by_depth_;    // hiddenᵀ [depth, stride] as pairs
  Buffer<uint16_t> by_example_;  // hidden [batch, sum_stride] as pairs
};

}  // namespace

std::unique_ptr<BlockProducts> make_bfloat16_products(const float* hidden, int64_t examples,
                                                      const OutputLayer& layer, Isa isa) {
  return std::make_unique<BFloat16Products>(hidden, examples, layer, isa);
}

}  // namespace qcompile

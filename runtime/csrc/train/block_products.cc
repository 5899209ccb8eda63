#include "train/block_products.h"

#include <algorithm>

#include "core/lanes.h"
#include "train/kernels.h"

namespace qcompile {
namespace {

constexpr int64_t kAhead = 8;  // rows that are asked for before they are read

class FloatProducts final : public BlockProducts {
 public:
  FloatProducts(const float* hidden, int64_t examples, const OutputLayer& layer)
      : BlockProducts(hidden, examples, layer) {
    float* columns = columns_.resize(layer.depth() * stride_);
    std::fill(columns, columns + layer.depth() * stride_, 0.0f);
    for (int64_t e = 0; e < examples; ++e) {
      for (int64_t j = 0; j < layer.depth(); ++j) {
        columns[j * stride_ + e] = hidden[e * layer.depth() + j];
      }
    }
  }

  void logits(std::span<const uint32_t> ids, float* logits, Scratch& scratch) const override {
    const int64_t rows = static_cast<int64_t>(ids.size()), depth = layer_.depth();
    const float* block = gather(ids, scratch);
    scratch.rows = block;
    std::fill(logits, logits + rows * stride_, 0.0f);
    kernels_.multiply_add(rows, stride_, depth, {block, depth, 1}, columns_.data(), stride_, logits,
                          stride_);
  }

  void add_weights(int64_t rows, float* factors, float* sums, Scratch& scratch) const override {
    const int64_t depth = layer_.depth();
    kernels_.multiply_add(examples_, depth, rows, {factors, 1, stride_},
                          static_cast<const float*>(scratch.rows), depth, sums, sum_stride_);
  }

  void gradients(int64_t rows, const float* factors, float* gradients, Scratch&) const override {
    const int64_t depth = layer_.depth();
    std::fill(gradients, gradients + rows * depth, 0.0f);
    kernels_.multiply_add(rows, depth, examples_, {factors, stride_, 1}, hidden_, depth, gradients,
                          depth);
  }

 private:
  const float* gather(std::span<const uint32_t> ids, Scratch& scratch) const {
    const int64_t rows = static_cast<int64_t>(ids.size()), depth = layer_.depth();
    const float* weight = static_cast<const float*>(layer_.weight.data);
    if (int64_t{ids.back()} - ids.front() + 1 == rows) return weight + ids.front() * depth;
    float* block = scratch.floats.resize(kRows * depth);
    for (int64_t i = 0; i < rows; ++i) {
      if (i + kAhead < rows) layer_.prefetch(ids[i + kAhead]);
      std::copy_n(weight + ids[i] * depth, depth, block + i * depth);
    }
    return block;
  }

  const TrainKernels& kernels_ = train_kernels();
  Buffer<float> columns_;  // [depth, stride] the hidden activations, transposed
};

}  // namespace

BlockProducts::BlockProducts(const float* hidden, int64_t examples, const OutputLayer& layer)
    : hidden_(hidden),
      examples_(examples),
      stride_(round_up(examples, kLanes)),
      sum_stride_(round_up(layer.depth(), kLanes)),
      layer_(layer) {}

std::unique_ptr<BlockProducts> make_products(const float* hidden, int64_t examples,
                                             const OutputLayer& layer) {
  if (layer.weight.storage == Storage::kFloat32) {
    return std::make_unique<FloatProducts>(hidden, examples, layer);
  }
  return make_bfloat16_products(hidden, examples, layer);
}

}  // namespace qcompile

// The three matrix products of a batch's hidden activations with a block of neurons.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "core/buffer.h"
#include "core/isa.h"
#include "core/parallel.h"
#include "train/output_layer.h"

namespace qcompile {

// Blocks of at most kRows neurons. Logits are [rows, stride], a column an example, `stride` the
// examples rounded up to kLanes.
class BlockProducts {
 public:
  static constexpr int64_t kRows = 128;

  // What one thread works in; holds the rows of its last call of logits().
  struct Scratch {
    const void* rows = nullptr;
    Buffer<float> floats;
    Buffer<uint16_t> halves;
    Buffer<uint16_t> more_halves;
  };

  BlockProducts(const float* hidden, int64_t examples, const OutputLayer& layer);
  virtual ~BlockProducts() = default;

  int64_t examples() const { return examples_; }
  int64_t stride() const { return stride_; }
  int64_t sum_stride() const { return sum_stride_; }  // depth, rounded up to kLanes
  const OutputLayer& layer() const { return layer_; }

  // logits [rows, stride] = weight[ids] · hiddenᵀ. `logits` has room for rows up to a multiple of
  // kLanes.
  virtual void logits(std::span<const uint32_t> ids, float* logits, Scratch& scratch) const = 0;

  // sums [stride, sum_stride] += factorsᵀ · weight[ids], for the ids of the last call of logits().
  // `factors` is [kRows, stride]; what lies beyond `rows` is overwritten.
  virtual void add_weights(int64_t rows, float* factors, float* sums, Scratch& scratch) const = 0;

  // gradients [rows, depth] = factors · hidden.
  virtual void gradients(int64_t rows, const float* factors, float* gradients,
                         Scratch& scratch) const = 0;

 protected:
  const float* hidden_;
  int64_t examples_;
  int64_t stride_;
  int64_t sum_stride_;
  OutputLayer layer_;
};

// In float32, or in bfloat16 with sums in float32, as the weights are stored. `hidden` and the
// layer must outlive the result.
std::unique_ptr<BlockProducts> make_products(const float* hidden, int64_t examples,
                                             const OutputLayer& layer);
// For weights that are stored in bfloat16.
std::unique_ptr<BlockProducts> make_bfloat16_products(const float* hidden, int64_t examples,
                                                      const OutputLayer& layer,
                                                      Isa isa = best_matrix_isa());

constexpr int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

}  // namespace qcompile

// The part of a sparse softmax over the neurons that all examples of a batch share.
#pragma once

#include <cstdint>

#include "core/parallel.h"
#include "train/active_set.h"
#include "train/block_products.h"
#include "train/workspace.h"

namespace qcompile {

// Neurons are worked through in blocks, and blocks in chunks, each by one thread. A chunk keeps,
// for each example, the greatest logit so far, Σ exp(logit − greatest) and Σ exp(logit − greatest)
// · weight (Milakov and Gimelshein, 2018; Dao et al., NeurIPS 2022), from which both the softmax
// and the gradient of the hidden activations follow: the weights are read once. Where the logits
// are too many to be kept, the gradients of rows compute them again. Chunks depend on shapes
// alone, so results depend neither on the number of threads nor on their order.
class SharedPart {
 public:
  // Both must outlive this.
  SharedPart(const ActiveSet& set, Workspace& workspace) : set_(set), work_(workspace) {}

  void forward(const BlockProducts& products, const Executor& executor);

  // After forward(): the greatest logit of an example, −infinity if there is none, and
  // Σ exp(logit − shift).
  float top(int64_t example) const;
  double total(int64_t example, float shift) const;

  // grad [depth] += factor · Σ exp(logit − normaliser) · weight.
  void add_weights(int64_t example, float normaliser, float factor, float* grad) const;

  // What one thread works in.
  struct Scratch {
    BlockProducts::Scratch products;
    Buffer<float> logits;
    Buffer<float> columns;
  };

  // Of the neurons at places [begin, end) of set.shared, at most BlockProducts::kRows:
  // gradients [end − begin, depth] = Σ_e factor[e] · exp(logit − normaliser[e]) · hidden[e] and
  // bias [end − begin], the same without hidden. factor and normaliser have products.stride()
  // entries, the last ones zero.
  void row_gradients(const BlockProducts& products, int64_t begin, int64_t end,
                     const float* normaliser, const float* factor, float* gradients, float* bias,
                     Scratch& scratch) const;

 private:
  void plan(const BlockProducts& products);
  void chunk_forward(const BlockProducts& products, int64_t chunk, Scratch& scratch);
  void raise_top(int64_t chunk, const float* top);
  // Logits without those that an example has of its own; `top` as ColumnKernels::complete.
  void logits(const BlockProducts& products, int64_t begin, int64_t end, float* logits, float* top,
              Scratch& scratch) const;

  const ActiveSet& set_;
  Workspace& work_;
  int64_t examples_ = 0;
  int64_t depth_ = 0;
  int64_t stride_ = 0;      // of logits: examples, rounded up
  int64_t sum_stride_ = 0;  // of sums: depth, rounded up
  int64_t chunk_rows_ = 0;
  int64_t chunks_ = 0;
  bool kept_ = false;  // whether logits [S, stride] are
};

}  // namespace qcompile

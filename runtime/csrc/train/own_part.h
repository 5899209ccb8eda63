// The part of a sparse softmax over the neurons that each example has of its own.
#pragma once

#include <cstdint>

#include "core/parallel.h"
#include "train/active_set.h"
#include "train/output_layer.h"
#include "train/workspace.h"

namespace qcompile {

// How gradients of a neuron that several examples have are added up: in a fixed order by one
// thread, or by the threads of the examples as they come, without locks; see racing_sums.h.
enum class Accumulation { kDeterministic, kAsync };

// Deterministic, it works by neuron where rows are read or written, so that each is met once, and
// by example where sums are over an example's neurons; each sum has one owner and a fixed order.
// Async, everything is done by example, one thread each.
class OwnPart {
 public:
  // Set and workspace must outlive this.
  OwnPart(const ActiveSet& set, Workspace& workspace, Accumulation accumulation)
      : set_(set), work_(workspace), async_(accumulation == Accumulation::kAsync) {}

  void forward(const float* hidden, const OutputLayer& layer, const Executor& executor);

  // After forward(): the greatest logit of an example, Σ exp(logit − shift), and Σ of the logits
  // of its labels.
  float top(int64_t example) const;
  double total(int64_t example, float shift) const;
  float label_sum(int64_t example) const;

  // To be called before the gradients of the first example.
  void start_gradients(int64_t depth);

  // Gradients of an example's logits: factor · exp(logit − normaliser), plus `share` for a label;
  // and grad [depth] += Σ gradient · weight.
  void example_gradients(int64_t example, const OutputLayer& layer, const float* hidden,
                         float normaliser, float factor, float share, float* grad);

  // After that: gradient [depth] += Σ gradient · hidden over the pairs of one row; returns
  // Σ gradient.
  float add_row_gradient(int64_t row, const float* hidden, int64_t depth, float* gradient) const;

 private:
  void logits_by_row(const float* hidden, const OutputLayer& layer, const Executor& executor);
  void logits_by_example(const float* hidden, const OutputLayer& layer, const Executor& executor);

  const ActiveSet& set_;
  Workspace& work_;
  bool async_;
};

}  // namespace qcompile

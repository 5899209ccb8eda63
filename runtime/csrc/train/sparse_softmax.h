// Softmax over the active neurons of a batch, and its gradients.
#pragma once

#include <cstdint>
#include <vector>

#include "core/parallel.h"
#include "train/active_set.h"
#include "train/output_layer.h"
#include "train/own_part.h"
#include "train/row_optimizer.h"
#include "train/shared_part.h"
#include "train/workspace.h"

namespace qcompile {

// What one part of all neurons contributes to the softmax of each example, each [B].
struct Partial {
  float* top;            // greatest logit, −infinity if there is none
  float* total;          // Σ exp(logit − top)
  float* label_sum;      // Σ of the logits of labels
  int64_t* label_count;  // labels
};

// Milliseconds of the wall clock that the parts of a step took.
struct StepTimes {
  double catch_up = 0;  // rows, before they are read
  double own = 0;       // logits of neurons that examples have of their own
  double shared = 0;    // logits of shared neurons, and what they give to hidden gradients
  double hidden = 0;    // gradients of logits and of hidden activations
  double rows = 0;      // gradients of rows, and their update
};

// One batch, forward and then backward. Accumulated deterministically, each sum has one owner and
// a fixed order, so that results are the same for every executor.
class SparseSoftmax {
 public:
  explicit SparseSoftmax(ActiveSet set, Accumulation accumulation = Accumulation::kDeterministic);
  SparseSoftmax(const SparseSoftmax&) = delete;
  SparseSoftmax& operator=(const SparseSoftmax&) = delete;

  const ActiveSet& set() const { return set_; }
  const StepTimes& times() const { return times_; }

  // Rows that backward() writes gradients of, distinct and ascending: set().rows.
  int64_t rows() const { return set_.row_count(); }

  // Brings these rows to the optimisers' present step; to be called before forward(). `bias` may
  // be null.
  void catch_up(RowOptimizer& weight, RowOptimizer* bias, const Executor& executor);

  // log_probability [B]: the mean over an example's labels of their logarithmic probability.
  void forward(const float* hidden, const OutputLayer& layer, float* log_probability,
               const Executor& executor);

  // The same for neurons that are a part of all: forward() is partial() of every part and then
  // finish() of every part with log_normaliser [B] = log Σ over the parts of exp(top) · total and
  // label_count [B] summed over the parts.
  void partial(const float* hidden, const OutputLayer& layer, const Partial& result,
               const Executor& executor);
  void finish(const float* log_normaliser, const int64_t* label_count);

  // Gradients of Σ scale[e] · log_probability[e], after forward() with the same arguments; may be
  // called again. grad_hidden [B, depth], grad_rows [rows(), depth], grad_bias [rows()] are
  // overwritten.
  void backward(const float* hidden, const OutputLayer& layer, const float* scale,
                float* grad_hidden, float* grad_rows, float* grad_bias, const Executor& executor);

  // The same, with one step of the optimisers in place of gradients of rows; once per forward().
  // `bias` may be null.
  void backward_update(const float* hidden, const OutputLayer& layer, const float* scale,
                       float* grad_hidden, RowOptimizer& weight, RowOptimizer* bias,
                       const Executor& executor);

 private:
  // Of the logits and of the hidden activations; what row_gradients() needs.
  void start_backward(const BlockProducts& products, const float* hidden, const float* scale,
                      float* grad_hidden, const Executor& executor);
  // Rows [begin, end); the biases' gradients go to the workspace.
  void row_gradients(const BlockProducts& products, const float* hidden, int64_t begin, int64_t end,
                     float* gradients);

  ActiveSet set_;
  WorkspaceLease work_;
  OwnPart own_;
  SharedPart shared_;
  std::vector<float> log_normaliser_;  // [B]
  std::vector<int64_t> label_count_;   // [B] over all parts
  StepTimes times_;
};

}  // namespace qcompile

// Softmax over the active neurons of a batch, and its gradients.
#pragma once

#include <cstdint>
#include <vector>

#include "core/parallel.h"
#include "train/active_set.h"

namespace qcompile {

// The output layer, row-major: weight [N, depth], bias [N] or null.
struct OutputLayer {
  const float* weight = nullptr;
  const float* bias = nullptr;
  int64_t depth = 0;
};

// One batch, forward and then backward. Each sum has one owner and a fixed order, so that results
// are the same for every executor.
class SparseSoftmax {
 public:
  explicit SparseSoftmax(ActiveSet set);

  const ActiveSet& set() const { return set_; }

  // Rows that backward() writes: the neurons that some example has of its own, ascending, and then
  // the shared ones, ascending; one that is both occurs twice and its gradients add up.
  int64_t rows() const;
  void row_ids(int64_t* ids) const;

  // log_probability [B]: the mean over an example's labels of their logarithmic probability.
  void forward(const float* hidden, const OutputLayer& layer, float* log_probability,
               const Executor& executor);

  // Gradients of Σ scale[e] · log_probability[e], after forward() with the same arguments; may be
  // called again.
  // grad_hidden [B, depth], grad_rows [rows(), depth], grad_bias [rows()] are overwritten.
  void backward(const float* hidden, const OutputLayer& layer, const float* scale,
                float* grad_hidden, float* grad_rows, float* grad_bias, const Executor& executor);

 private:
  void own_logits(const float* hidden, const OutputLayer& layer, const Executor& executor);
  void shared_logits(const float* hidden, const OutputLayer& layer, const Executor& executor);
  float normalise(int64_t example);
  void logit_gradients(const float* scale, const Executor& executor);
  void hidden_gradients(const OutputLayer& layer, float* grad_hidden, const Executor& executor);
  void own_gradients(const float* hidden, int64_t depth, float* grad_rows, float* grad_bias,
                     const Executor& executor);
  void shared_gradients(const float* hidden, int64_t depth, float* grad_rows, float* grad_bias,
                        const Executor& executor);

  ActiveSet set_;
  // Logits, then probabilities.
  std::vector<float> own_;            // [P]
  std::vector<float> shared_;         // [B, S]
  std::vector<float> shared_weight_;  // [S, depth], gathered
  // Gradients of the logits, kept from one backward() to the next for their memory.
  std::vector<float> own_grad_;     // [P]
  std::vector<float> shared_grad_;  // [B, S]
};

}  // namespace qcompile

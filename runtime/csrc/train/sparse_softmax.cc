#include "train/sparse_softmax.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "index/exponential.h"
#include "train/kernels.h"

namespace qcompile {
namespace {

constexpr int64_t kExampleGrain = 8;
constexpr int64_t kRowGrain = 64;
constexpr float kNever = -std::numeric_limits<float>::infinity();

}  // namespace

SparseSoftmax::SparseSoftmax(ActiveSet set)
    : set_(std::move(set)),
      own_(set_.own.size()),
      shared_(set_.shared.size() * static_cast<size_t>(set_.examples)) {}

void SparseSoftmax::catch_up(RowOptimizer& weight, RowOptimizer* bias,
                             const Executor& executor) const {
  weight.catch_up(set_.rows, executor);
  if (bias != nullptr) bias->catch_up(set_.rows, executor);
}

void SparseSoftmax::forward(const float* hidden, const OutputLayer& layer, float* log_probability,
                            const Executor& executor) {
  std::vector<float> top(set_.examples), total(set_.examples), label_sum(set_.examples);
  std::vector<int64_t> count(set_.examples);
  partial(hidden, layer, {top.data(), total.data(), label_sum.data(), count.data()}, executor);
  for (int64_t e = 0; e < set_.examples; ++e) top[e] += std::log(total[e]);
  finish(top.data(), count.data());
  for (int64_t e = 0; e < set_.examples; ++e) {
    log_probability[e] = label_sum[e] / static_cast<float>(std::max<int64_t>(count[e], 1)) - top[e];
  }
}

void SparseSoftmax::partial(const float* hidden, const OutputLayer& layer, const Partial& result,
                            const Executor& executor) {
  own_logits(hidden, layer, executor);
  shared_logits(hidden, layer, executor);
  parallel_for(executor, set_.examples, kExampleGrain, [&](int64_t begin, int64_t end) {
    for (int64_t e = begin; e < end; ++e) reduce(e, result);
  });
}

void SparseSoftmax::finish(const float* log_normaliser, const int64_t* label_count) {
  log_normaliser_.assign(log_normaliser, log_normaliser + set_.examples);
  label_count_.assign(label_count, label_count + set_.examples);
}

void SparseSoftmax::own_logits(const float* hidden, const OutputLayer& layer,
                               const Executor& executor) {
  const TrainKernels& kernels = train_kernels();
  const int64_t depth = layer.depth;
  parallel_for(executor, set_.row_count(), kRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t neuron = set_.rows[row];
      const float* weight = layer.weight + neuron * depth;
      const float bias = layer.bias != nullptr ? layer.bias[neuron] : 0.0f;
      for (uint32_t p : set_.pairs_of(row)) {
        own_[p] = kernels.dot(weight, hidden + set_.example_of[p] * depth, depth) + bias;
      }
    }
  });
}

void SparseSoftmax::shared_logits(const float* hidden, const OutputLayer& layer,
                                  const Executor& executor) {
  const TrainKernels& kernels = train_kernels();
  const int64_t depth = layer.depth;
  const int64_t shared = static_cast<int64_t>(set_.shared.size());
  shared_weight_.resize(shared * depth);
  std::vector<float> transposed(shared * depth);
  std::vector<float> bias(shared);
  parallel_for(executor, shared, kRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t s = begin; s < end; ++s) {
      const int64_t neuron = set_.shared[s];
      const float* row = layer.weight + neuron * depth;
      std::copy(row, row + depth, shared_weight_.data() + s * depth);
      for (int64_t j = 0; j < depth; ++j) transposed[j * shared + s] = row[j];
      if (layer.bias != nullptr) bias[s] = layer.bias[neuron];
    }
  });
  parallel_for(executor, set_.examples, kExampleGrain, [&](int64_t begin, int64_t end) {
    for (int64_t e = begin; e < end; ++e) {
      float* logits = shared_.data() + e * shared;
      for (int64_t s = 0; s < shared; ++s) logits[s] = bias[s] + set_.correction[e];
    }
    kernels.multiply_add(end - begin, shared, depth, {hidden + begin * depth, depth, 1},
                         transposed.data(), shared, shared_.data() + begin * shared, shared);
  });
  for (int64_t row = 0; row < set_.row_count(); ++row) {
    const int32_t place = set_.shared_place[row];
    if (place < 0) continue;
    for (uint32_t p : set_.pairs_of(row)) {
      shared_[set_.example_of[p] * shared + place] = kNever;  // counted once, as its own
    }
  }
}

void SparseSoftmax::reduce(int64_t example, const Partial& result) {
  const int64_t begin = set_.own_offsets[example];
  const int64_t own = set_.own_offsets[example + 1] - begin;
  const int64_t shared = static_cast<int64_t>(set_.shared.size());
  const float* own_logits = own_.data() + begin;
  const float* shared_logits = shared_.data() + example * shared;
  const uint32_t labels = set_.label_counts[example];
  float label_sum = 0;
  for (uint32_t i = 0; i < labels; ++i) label_sum += own_logits[i];
  const Isa isa = best_isa();
  const float top = std::max(greatest(own_logits, own, isa), greatest(shared_logits, shared, isa));
  std::vector<float> values(own_logits, own_logits + own);
  double sum = exponentials(values.data(), own, top, isa);
  values.assign(shared_logits, shared_logits + shared);
  sum += exponentials(values.data(), shared, top, isa);
  result.top[example] = top;
  result.total[example] = static_cast<float>(sum);
  result.label_sum[example] = label_sum;
  result.label_count[example] = labels;
}

void SparseSoftmax::backward(const float* hidden, const OutputLayer& layer, const float* scale,
                             float* grad_hidden, float* grad_rows, float* grad_bias,
                             const Executor& executor) {
  logit_gradients(scale, executor);
  hidden_gradients(layer, grad_hidden, executor);
  parallel_for(executor, rows(), kRowGrain, [&](int64_t begin, int64_t end) {
    row_gradients(hidden, layer.depth, begin, end, grad_rows + begin * layer.depth);
    bias_gradients(begin, end, grad_bias + begin);
  });
}

void SparseSoftmax::backward_update(const float* hidden, const OutputLayer& layer,
                                    const float* scale, float* grad_hidden, RowOptimizer& weight,
                                    RowOptimizer* bias, const Executor& executor) {
  logit_gradients(scale, executor);
  hidden_gradients(layer, grad_hidden, executor);
  weight.step(
      set_.rows,
      [&](int64_t begin, int64_t end, float* gradients) {
        row_gradients(hidden, layer.depth, begin, end, gradients);
      },
      executor);
  if (bias == nullptr) return;
  bias->step(
      set_.rows,
      [&](int64_t begin, int64_t end, float* gradients) { bias_gradients(begin, end, gradients); },
      executor);
}

void SparseSoftmax::logit_gradients(const float* scale, const Executor& executor) {
  const int64_t shared = static_cast<int64_t>(set_.shared.size());
  own_grad_ = own_;
  shared_grad_ = shared_;
  parallel_for(executor, set_.examples, kExampleGrain, [&](int64_t begin, int64_t end) {
    const Isa isa = best_isa();
    for (int64_t e = begin; e < end; ++e) {
      const int64_t first = set_.own_offsets[e];
      const int64_t own = set_.own_offsets[e + 1] - first;
      exponentials(own_grad_.data() + first, own, log_normaliser_[e], isa);
      exponentials(shared_grad_.data() + e * shared, shared, log_normaliser_[e], isa);
      scale_values(own_grad_.data() + first, own, -scale[e], isa);
      scale_values(shared_grad_.data() + e * shared, shared, -scale[e], isa);
      const float share = scale[e] / static_cast<float>(std::max<int64_t>(label_count_[e], 1));
      for (uint32_t i = 0; i < set_.label_counts[e]; ++i) own_grad_[first + i] += share;
    }
  });
}

void SparseSoftmax::hidden_gradients(const OutputLayer& layer, float* grad_hidden,
                                     const Executor& executor) {
  const TrainKernels& kernels = train_kernels();
  const int64_t depth = layer.depth;
  const int64_t shared = static_cast<int64_t>(set_.shared.size());
  parallel_for(executor, set_.examples, kExampleGrain, [&](int64_t begin, int64_t end) {
    std::fill(grad_hidden + begin * depth, grad_hidden + end * depth, 0.0f);
    kernels.multiply_add(end - begin, depth, shared,
                         {shared_grad_.data() + begin * shared, shared, 1}, shared_weight_.data(),
                         depth, grad_hidden + begin * depth, depth);
    for (int64_t p = set_.own_offsets[begin]; p < set_.own_offsets[end]; ++p) {
      kernels.add_scaled(own_grad_[p], layer.weight + set_.own[p] * depth,
                         grad_hidden + set_.example_of[p] * depth, depth);
    }
  });
}

void SparseSoftmax::row_gradients(const float* hidden, int64_t depth, int64_t begin, int64_t end,
                                  float* grad_rows) const {
  const TrainKernels& kernels = train_kernels();
  const int64_t shared = static_cast<int64_t>(set_.shared.size());
  std::fill(grad_rows, grad_rows + (end - begin) * depth, 0.0f);
  for (int64_t row = begin; row < end; ++row) {
    float* grad = grad_rows + (row - begin) * depth;
    const int32_t place = set_.shared_place[row];
    if (place >= 0) {
      kernels.multiply_add(1, depth, set_.examples, {shared_grad_.data() + place, 1, shared},
                           hidden, depth, grad, depth);
    }
    for (uint32_t p : set_.pairs_of(row)) {
      kernels.add_scaled(own_grad_[p], hidden + set_.example_of[p] * depth, grad, depth);
    }
  }
}

void SparseSoftmax::bias_gradients(int64_t begin, int64_t end, float* grad_bias) const {
  const int64_t shared = static_cast<int64_t>(set_.shared.size());
  for (int64_t row = begin; row < end; ++row) {
    float total = 0;
    if (const int32_t place = set_.shared_place[row]; place >= 0) {
      for (int64_t e = 0; e < set_.examples; ++e) total += shared_grad_[e * shared + place];
    }
    for (uint32_t p : set_.pairs_of(row)) total += own_grad_[p];
    grad_bias[row - begin] = total;
  }
}

}  // namespace qcompile

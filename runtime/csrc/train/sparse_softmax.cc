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

int64_t SparseSoftmax::rows() const {
  return set_.by_neuron.size() + static_cast<int64_t>(set_.shared.size());
}

void SparseSoftmax::row_ids(int64_t* ids) const {
  ids = std::copy(set_.by_neuron.keys.begin(), set_.by_neuron.keys.end(), ids);
  std::copy(set_.shared.begin(), set_.shared.end(), ids);
}

void SparseSoftmax::forward(const float* hidden, const OutputLayer& layer, float* log_probability,
                            const Executor& executor) {
  own_logits(hidden, layer, executor);
  shared_logits(hidden, layer, executor);
  parallel_for(executor, set_.examples, kExampleGrain, [&](int64_t begin, int64_t end) {
    for (int64_t e = begin; e < end; ++e) log_probability[e] = normalise(e);
  });
}

void SparseSoftmax::own_logits(const float* hidden, const OutputLayer& layer,
                               const Executor& executor) {
  const TrainKernels& kernels = train_kernels();
  const int64_t depth = layer.depth;
  parallel_for(executor, set_.by_neuron.size(), kRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t neuron = set_.by_neuron.keys[row];
      const float* weight = layer.weight + neuron * depth;
      const float bias = layer.bias != nullptr ? layer.bias[neuron] : 0.0f;
      for (uint32_t p : set_.by_neuron.members(row)) {
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
}

float SparseSoftmax::normalise(int64_t example) {
  const int64_t begin = set_.own_offsets[example];
  const int64_t own = set_.own_offsets[example + 1] - begin;
  const int64_t shared = static_cast<int64_t>(set_.shared.size());
  float* own_logits = own_.data() + begin;
  float* shared_logits = shared_.data() + example * shared;
  for (int64_t i = 0; i < own; ++i) {
    const int32_t place = set_.shared_place[begin + i];
    if (place >= 0) shared_logits[place] = kNever;  // counted once, as its own
  }
  const uint32_t labels = set_.label_counts[example];
  double label_sum = 0;
  for (uint32_t i = 0; i < labels; ++i) label_sum += own_logits[i];
  const Isa isa = best_isa();
  const float top = std::max(greatest(own_logits, own, isa), greatest(shared_logits, shared, isa));
  const double sum =
      exponentials(own_logits, own, top, isa) + exponentials(shared_logits, shared, top, isa);
  const float scale = static_cast<float>(1.0 / sum);
  scale_values(own_logits, own, scale, isa);
  scale_values(shared_logits, shared, scale, isa);
  return static_cast<float>(label_sum / labels - top - std::log(sum));
}

void SparseSoftmax::backward(const float* hidden, const OutputLayer& layer, const float* scale,
                             float* grad_hidden, float* grad_rows, float* grad_bias,
                             const Executor& executor) {
  const int64_t own_rows = set_.by_neuron.size();
  logit_gradients(scale, executor);
  hidden_gradients(layer, grad_hidden, executor);
  own_gradients(hidden, layer.depth, grad_rows, grad_bias, executor);
  shared_gradients(hidden, layer.depth, grad_rows + own_rows * layer.depth, grad_bias + own_rows,
                   executor);
}

void SparseSoftmax::logit_gradients(const float* scale, const Executor& executor) {
  const int64_t shared = static_cast<int64_t>(set_.shared.size());
  own_grad_.resize(own_.size());
  shared_grad_.resize(shared_.size());
  parallel_for(executor, set_.examples, kExampleGrain, [&](int64_t begin, int64_t end) {
    for (int64_t e = begin; e < end; ++e) {
      const float target = 1.0f / static_cast<float>(set_.label_counts[e]);
      const int64_t first_other = set_.own_offsets[e] + set_.label_counts[e];
      for (int64_t p = set_.own_offsets[e]; p < set_.own_offsets[e + 1]; ++p) {
        own_grad_[p] = scale[e] * ((p < first_other ? target : 0.0f) - own_[p]);
      }
      for (int64_t i = e * shared; i < (e + 1) * shared; ++i)
        shared_grad_[i] = -scale[e] * shared_[i];
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

void SparseSoftmax::own_gradients(const float* hidden, int64_t depth, float* grad_rows,
                                  float* grad_bias, const Executor& executor) {
  const TrainKernels& kernels = train_kernels();
  parallel_for(executor, set_.by_neuron.size(), kRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      float* grad = grad_rows + row * depth;
      float total = 0;
      std::fill(grad, grad + depth, 0.0f);
      for (uint32_t p : set_.by_neuron.members(row)) {
        kernels.add_scaled(own_grad_[p], hidden + set_.example_of[p] * depth, grad, depth);
        total += own_grad_[p];
      }
      grad_bias[row] = total;
    }
  });
}

void SparseSoftmax::shared_gradients(const float* hidden, int64_t depth, float* grad_rows,
                                     float* grad_bias, const Executor& executor) {
  const TrainKernels& kernels = train_kernels();
  const int64_t shared = static_cast<int64_t>(set_.shared.size());
  parallel_for(executor, shared, kRowGrain, [&](int64_t begin, int64_t end) {
    std::fill(grad_rows + begin * depth, grad_rows + end * depth, 0.0f);
    kernels.multiply_add(end - begin, depth, set_.examples,
                         {shared_grad_.data() + begin, 1, shared}, hidden, depth,
                         grad_rows + begin * depth, depth);
    std::fill(grad_bias + begin, grad_bias + end, 0.0f);
    for (int64_t e = 0; e < set_.examples; ++e) {
      const float* grads = shared_grad_.data() + e * shared;
      for (int64_t s = begin; s < end; ++s) grad_bias[s] += grads[s];
    }
  });
}

}  // namespace qcompile

#include "train/own_part.h"

#include <algorithm>
#include <limits>

#include "core/buffer.h"
#include "index/exponential.h"
#include "train/kernels.h"

namespace qcompile {
namespace {

constexpr int64_t kRowGrain = 64;
constexpr int64_t kAhead = 8;  // rows that are asked for before they are read

// Row `neuron` as floats; `room` has depth entries, to be used if it is not stored as such.
const float* row_of(const OutputLayer& layer, int64_t neuron, float* room) {
  if (layer.weight.storage == Storage::kFloat32) {
    return static_cast<const float*>(layer.weight.data) + neuron * layer.depth();
  }
  load_row(layer.weight, neuron, room);
  return room;
}

}  // namespace

void OwnPart::forward(const float* hidden, const OutputLayer& layer, const Executor& executor) {
  work_.own_logits.resize(set_.own.size());
  if (async_) {
    logits_by_example(hidden, layer, executor);
  } else {
    logits_by_row(hidden, layer, executor);
  }
}

void OwnPart::logits_by_row(const float* hidden, const OutputLayer& layer,
                            const Executor& executor) {
  const TrainKernels& kernels = train_kernels();
  const int64_t depth = layer.depth();
  float* logits = work_.own_logits.data();
  parallel_for(executor, set_.row_count(), kRowGrain, [&](int64_t begin, int64_t end) {
    thread_local Buffer<float> buffer;
    float* room = buffer.resize(depth);
    for (int64_t row = begin; row < end; ++row) {
      if (row + kAhead < end && !set_.pairs_of(row + kAhead).empty()) {
        layer.prefetch(set_.rows[row + kAhead]);
      }
      const auto pairs = set_.pairs_of(row);
      if (pairs.empty()) continue;
      const int64_t neuron = set_.rows[row];
      const float* weight = row_of(layer, neuron, room);
      const float bias = layer.bias_of(neuron);
      for (uint32_t p : pairs) {
        logits[p] = kernels.dot(weight, hidden + set_.example_of[p] * depth, depth) + bias;
      }
    }
  });
}

void OwnPart::logits_by_example(const float* hidden, const OutputLayer& layer,
                                const Executor& executor) {
  const int64_t depth = layer.depth();
  executor.run(set_.examples, [&](int64_t example) {
    thread_local Buffer<float> buffer;
    float* room = buffer.resize(depth);
    const int64_t end = set_.own_offsets[example + 1];
    for (int64_t p = set_.own_offsets[example]; p < end; ++p) {
      if (p + kAhead < end) layer.prefetch(set_.own[p + kAhead]);
      const float* weight = row_of(layer, set_.own[p], room);
      work_.own_logits[p] =
          train_kernels().dot(weight, hidden + example * depth, depth) + layer.bias_of(set_.own[p]);
    }
  });
}

float OwnPart::top(int64_t example) const {
  const int64_t begin = set_.own_offsets[example];
  return greatest(work_.own_logits.data() + begin, set_.own_offsets[example + 1] - begin,
                  best_isa());
}

double OwnPart::total(int64_t example, float shift) const {
  const int64_t begin = set_.own_offsets[example];
  const int64_t count = set_.own_offsets[example + 1] - begin;
  thread_local Buffer<float> buffer;
  float* values = buffer.resize(count);
  std::copy_n(work_.own_logits.data() + begin, count, values);
  return exponentials(values, count, shift, best_isa());
}

float OwnPart::label_sum(int64_t example) const {
  const float* logits = work_.own_logits.data() + set_.own_offsets[example];
  float sum = 0;
  for (uint32_t i = 0; i < set_.label_counts[example]; ++i) sum += logits[i];
  return sum;
}

void OwnPart::start_gradients(int64_t depth) {
  work_.own_gradients.resize(set_.own.size());
  if (!async_) return;
  // Rows that somebody has of its own are numbered, for sums of gradients of weight and bias.
  uint32_t* slots = work_.slots.resize(set_.own.size());
  uint32_t count = 0;
  for (int64_t row = 0; row < set_.row_count(); ++row) {
    const auto pairs = set_.pairs_of(row);
    for (uint32_t p : pairs) slots[p] = count;
    count += !pairs.empty();
  }
  work_.racing.reset(count, depth + 1);
}

void OwnPart::example_gradients(int64_t example, const OutputLayer& layer, const float* hidden,
                                float normaliser, float factor, float share, float* grad) {
  const TrainKernels& kernels = train_kernels();
  const int64_t begin = set_.own_offsets[example], end = set_.own_offsets[example + 1];
  const int64_t depth = layer.depth();
  float* gradients = work_.own_gradients.data();
  std::copy(work_.own_logits.data() + begin, work_.own_logits.data() + end, gradients + begin);
  exponentials(gradients + begin, end - begin, normaliser, best_isa());
  scale_values(gradients + begin, end - begin, factor, best_isa());
  for (uint32_t i = 0; i < set_.label_counts[example]; ++i) gradients[begin + i] += share;
  thread_local Buffer<float> buffer;
  float* room = buffer.resize(depth);
  constexpr float kOne = 1.0f;
  for (int64_t p = begin; p < end; ++p) {
    if (p + kAhead < end) layer.prefetch(set_.own[p + kAhead]);
    kernels.add_scaled(gradients[p], row_of(layer, set_.own[p], room), grad, depth);
    if (!async_) continue;
    work_.racing.add(work_.slots[p], 0, gradients[p], hidden + example * depth, depth);
    work_.racing.add(work_.slots[p], depth, gradients[p], &kOne, 1);
  }
}

float OwnPart::add_row_gradient(int64_t row, const float* hidden, int64_t depth,
                                float* gradient) const {
  const TrainKernels& kernels = train_kernels();
  const auto pairs = set_.pairs_of(row);
  if (async_ && !pairs.empty()) {
    const float* sums = work_.racing.row(work_.slots[pairs.front()]);
    kernels.add_scaled(1.0f, sums, gradient, depth);
    return sums[depth];
  }
  float total = 0;
  for (uint32_t p : pairs) {
    const float factor = work_.own_gradients[p];
    kernels.add_scaled(factor, hidden + set_.example_of[p] * depth, gradient, depth);
    total += factor;
  }
  return total;
}

}  // namespace qcompile

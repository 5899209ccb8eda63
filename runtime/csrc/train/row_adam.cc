#include "train/row_adam.h"

#include <algorithm>
#include <cmath>

#include "core/group.h"
#include "train/kernels.h"

namespace qcompile {
namespace {

constexpr int64_t kRowGrain = 64;

GradientStep gradient_step(const AdamRates& rates, int64_t step) {
  const double first = 1.0 - std::pow(rates.beta1, static_cast<double>(step));
  const double second = 1.0 - std::pow(rates.beta2, static_cast<double>(step));
  return {.first_rate = static_cast<float>(1.0 - rates.beta1),
          .second_rate = static_cast<float>(1.0 - rates.beta2),
          .second_decay = static_cast<float>(rates.beta2),
          .step_size = static_cast<float>(rates.learning_rate / first),
          .second_scale = static_cast<float>(std::sqrt(second)),
          .epsilon = static_cast<float>(rates.epsilon)};
}

AdamRow row_of(const AdamMatrix& matrix, int64_t row) {
  const int64_t at = row * matrix.depth;
  return {matrix.value + at, matrix.first + at, matrix.second + at, matrix.depth};
}

}  // namespace

RowAdam::RowAdam(int64_t rows, int64_t steps) : base_(steps), taken_(rows) {}

// By the number of idle steps before and including step `until` of the history; from the latest
// step backwards, each sum follows from the one before it.
std::vector<IdleStep> RowAdam::idle_steps(int64_t until) const {
  std::vector<IdleStep> table(1);
  if (until == 0) return table;
  double plain = 0;   // Σ a_k β1^(k−s) / (1−β1^k)
  double scaled = 0;  // the same terms over b_k
  double first = 1;
  double second = 1;
  for (int64_t s = until - 1; s >= 0; --s) {
    const AdamRates& rates = history_[s];
    const double k = static_cast<double>(base_ + s + 1);
    const double rate = rates.learning_rate / (1.0 - std::pow(rates.beta1, k));
    const double root = std::sqrt(1.0 - std::pow(rates.beta2, k));
    plain = rates.beta1 * (rate + plain);
    scaled = rates.beta1 / std::sqrt(rates.beta2) * (rate * root + scaled);
    first *= rates.beta1;
    second *= rates.beta2;
    table.push_back({.sum = static_cast<float>(plain),
                     .spread = scaled > 0 ? static_cast<float>(plain / scaled) : 1.0f,
                     .epsilon = static_cast<float>(rates.epsilon),
                     .first_decay = static_cast<float>(first),
                     .second_decay = static_cast<float>(second)});
  }
  return table;
}

void RowAdam::step(const AdamMatrix& matrix, std::span<const int64_t> ids, const float* gradients,
                   const AdamRates& rates, const Executor& executor) {
  const Groups groups = group_positions(ids, rows());
  const bool full = static_cast<int64_t>(history_.size()) >= kFlushAfter;
  // A catch-up has one epsilon for all its steps; it is the only rate that may not vary.
  const bool changed = !history_.empty() && rates.epsilon != history_.back().epsilon;
  if (full || changed) flush(matrix, executor);
  const std::vector<IdleStep> idle = idle_steps(static_cast<int64_t>(history_.size()));
  history_.push_back(rates);
  const int32_t now = static_cast<int32_t>(history_.size());
  const GradientStep taken = gradient_step(rates, steps());
  const AdamKernels& kernels = adam_kernels();
  const int64_t depth = matrix.depth;
  parallel_for(executor, groups.size(), kRowGrain, [&](int64_t begin, int64_t end) {
    std::vector<float> sum(depth);
    for (int64_t g = begin; g < end; ++g) {
      const std::span<const uint32_t> members = groups.members(g);
      const float* gradient = gradients + members[0] * depth;
      if (members.size() > 1) {
        std::copy(gradient, gradient + depth, sum.begin());
        for (uint32_t p : members.subspan(1)) {
          train_kernels().add_scaled(1.0f, gradients + p * depth, sum.data(), depth);
        }
        gradient = sum.data();
      }
      const int64_t id = groups.keys[g];
      const AdamRow row = row_of(matrix, id);
      const int32_t missed = now - 1 - taken_[id];
      if (missed > 0) kernels.idle(row, idle[missed]);
      kernels.gradient(row, gradient, taken);
      taken_[id] = now;
    }
  });
}

void RowAdam::flush(const AdamMatrix& matrix, const Executor& executor) {
  const std::vector<IdleStep> idle = idle_steps(static_cast<int64_t>(history_.size()));
  const int32_t now = static_cast<int32_t>(history_.size());
  parallel_for(executor, rows(), kRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t id = begin; id < end; ++id) {
      const int32_t missed = now - taken_[id];
      if (missed > 0) adam_kernels().idle(row_of(matrix, id), idle[missed]);
      taken_[id] = 0;
    }
  });
  base_ += now;
  history_.clear();
}

}  // namespace qcompile

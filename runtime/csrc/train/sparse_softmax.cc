#include "train/sparse_softmax.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <utility>

#include "core/stopwatch.h"

namespace qcompile {
namespace {

constexpr int64_t kExampleGrain = 8;
constexpr int64_t kBlock = BlockProducts::kRows;

}  // namespace

SparseSoftmax::SparseSoftmax(ActiveSet set, Accumulation accumulation)
    : set_(std::move(set)),
      work_(lease_workspace()),
      own_(set_, *work_, accumulation),
      shared_(set_, *work_) {}

void SparseSoftmax::catch_up(RowOptimizer& weight, RowOptimizer* bias, const Executor& executor) {
  Stopwatch watch;
  weight.catch_up(set_.rows, executor);
  if (bias != nullptr) bias->catch_up(set_.rows, executor);
  times_.catch_up = watch.lap();
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
  Stopwatch watch;
  own_.forward(hidden, layer, executor);
  times_.own = watch.lap();
  shared_.forward(*make_products(hidden, set_.examples, layer), executor);
  parallel_for(executor, set_.examples, kExampleGrain, [&](int64_t begin, int64_t end) {
    for (int64_t e = begin; e < end; ++e) {
      const float top = std::max(own_.top(e), shared_.top(e));
      const float shift = std::isinf(top) && top < 0 ? 0.0f : top;
      result.top[e] = top;
      result.total[e] = static_cast<float>(own_.total(e, shift) + shared_.total(e, shift));
      result.label_sum[e] = own_.label_sum(e);
      result.label_count[e] = set_.label_counts[e];
    }
  });
  times_.shared = watch.lap();
}

void SparseSoftmax::finish(const float* log_normaliser, const int64_t* label_count) {
  log_normaliser_.assign(log_normaliser, log_normaliser + set_.examples);
  label_count_.assign(label_count, label_count + set_.examples);
}

void SparseSoftmax::backward(const float* hidden, const OutputLayer& layer, const float* scale,
                             float* grad_hidden, float* grad_rows, float* grad_bias,
                             const Executor& executor) {
  const auto products = make_products(hidden, set_.examples, layer);
  start_backward(*products, hidden, scale, grad_hidden, executor);
  Stopwatch watch;
  parallel_for(executor, rows(), kBlock, [&](int64_t begin, int64_t end) {
    row_gradients(*products, hidden, begin, end, grad_rows + begin * layer.depth());
    std::copy(work_->bias_gradients.data() + begin, work_->bias_gradients.data() + end,
              grad_bias + begin);
  });
  times_.rows = watch.lap();
}

void SparseSoftmax::backward_update(const float* hidden, const OutputLayer& layer,
                                    const float* scale, float* grad_hidden, RowOptimizer& weight,
                                    RowOptimizer* bias, const Executor& executor) {
  const auto products = make_products(hidden, set_.examples, layer);
  start_backward(*products, hidden, scale, grad_hidden, executor);
  Stopwatch watch;
  weight.step(
      set_.rows,
      [&](int64_t begin, int64_t end, float* gradients) {
        row_gradients(*products, hidden, begin, end, gradients);
      },
      executor);
  if (bias != nullptr) {
    bias->step(
        set_.rows,
        [&](int64_t begin, int64_t end, float* gradients) {
          std::copy(work_->bias_gradients.data() + begin, work_->bias_gradients.data() + end,
                    gradients);
        },
        executor);
  }
  times_.rows = watch.lap();
}

void SparseSoftmax::start_backward(const BlockProducts& products, const float* hidden,
                                   const float* scale, float* grad_hidden,
                                   const Executor& executor) {
  Stopwatch watch;
  const OutputLayer& layer = products.layer();
  float* normaliser = work_->normaliser.resize(products.stride());
  float* factor = work_->factor.resize(products.stride());
  std::fill(normaliser, normaliser + products.stride(), 0.0f);
  std::fill(factor, factor + products.stride(), 0.0f);
  std::copy(log_normaliser_.begin(), log_normaliser_.end(), normaliser);
  std::transform(scale, scale + set_.examples, factor, std::negate<>());
  own_.start_gradients(layer.depth());
  work_->bias_gradients.resize(rows());
  parallel_for(executor, set_.examples, kExampleGrain, [&](int64_t begin, int64_t end) {
    for (int64_t e = begin; e < end; ++e) {
      float* grad = grad_hidden + e * layer.depth();
      std::fill(grad, grad + layer.depth(), 0.0f);
      const float share = scale[e] / static_cast<float>(std::max<int64_t>(label_count_[e], 1));
      own_.example_gradients(e, layer, hidden, normaliser[e], factor[e], share, grad);
      shared_.add_weights(e, normaliser[e], factor[e], grad);
    }
  });
  times_.hidden = watch.lap();
}

void SparseSoftmax::row_gradients(const BlockProducts& products, const float* hidden, int64_t begin,
                                  int64_t end, float* gradients) {
  const int64_t depth = products.layer().depth();
  thread_local SharedPart::Scratch scratch;
  thread_local Buffer<float> buffer;
  float* block = buffer.resize(kBlock * (depth + 1));
  float* block_bias = block + kBlock * depth;
  for (int64_t first = begin; first < end; first += kBlock) {
    const int64_t last = std::min(first + kBlock, end);
    // The shared ones among these rows are neighbours in the list of shared neurons.
    int64_t from = -1, to = -1;
    for (int64_t row = first; row < last; ++row) {
      if (const int32_t place = set_.shared_place[row]; place >= 0) {
        if (from < 0) from = place;
        to = place + 1;
      }
    }
    if (from >= 0) {
      shared_.row_gradients(products, from, to, work_->normaliser.data(), work_->factor.data(),
                            block, block_bias, scratch);
    }
    for (int64_t row = first; row < last; ++row) {
      float* gradient = gradients + (row - begin) * depth;
      float bias = 0;
      if (const int32_t place = set_.shared_place[row]; place >= 0) {
        std::copy_n(block + (place - from) * depth, depth, gradient);
        bias = block_bias[place - from];
      } else {
        std::fill(gradient, gradient + depth, 0.0f);
      }
      bias += own_.add_row_gradient(row, hidden, depth, gradient);
      work_->bias_gradients[row] = bias;
    }
  }
}

}  // namespace qcompile

#include "train/shared_part.h"

#include <algorithm>
#include <limits>

#include "core/exponent.h"
#include "train/column_kernels.h"
#include "train/kernels.h"

namespace qcompile {
namespace {

constexpr int64_t kBlock = BlockProducts::kRows;
constexpr int64_t kMostChunks = 64;
constexpr int64_t kLeastChunks = 4;
constexpr int64_t kChunkRows = 256;  // at least; each chunk has sums of its own to add up
constexpr int64_t kSumsLimit = int64_t{1} << 24;  // floats of all chunks' sums
constexpr int64_t kKeptLimit = int64_t{1} << 24;  // logits that are kept
constexpr float kGreatest = 88.0f;                // of what exponential() takes
constexpr float kNever = -std::numeric_limits<float>::infinity();

}  // namespace

void SharedPart::plan(const BlockProducts& products) {
  const int64_t shared = static_cast<int64_t>(set_.shared.size());
  examples_ = products.examples();
  depth_ = products.layer().depth();
  stride_ = products.stride();
  sum_stride_ = products.sum_stride();
  const int64_t sums = std::max<int64_t>(1, stride_ * sum_stride_);
  const int64_t most = std::clamp<int64_t>(kSumsLimit / sums, kLeastChunks, kMostChunks);
  chunk_rows_ = std::max<int64_t>(kChunkRows, round_up((shared + most - 1) / most, kBlock));
  chunks_ = (shared + chunk_rows_ - 1) / chunk_rows_;
  kept_ = shared * stride_ <= kKeptLimit;
  if (kept_) work_.shared_logits.resize(round_up(shared, kBlock) * stride_);
  work_.shared_bias.resize(shared);
  work_.chunk_top.resize(chunks_ * stride_);
  work_.chunk_total.resize(chunks_ * stride_);
  work_.chunk_sums.resize(chunks_ * stride_ * sum_stride_);
}

void SharedPart::forward(const BlockProducts& products, const Executor& executor) {
  plan(products);
  executor.run(chunks_, [&](int64_t chunk) {
    thread_local Scratch scratch;
    chunk_forward(products, chunk, scratch);
  });
}

void SharedPart::chunk_forward(const BlockProducts& products, int64_t chunk, Scratch& scratch) {
  const ColumnKernels& kernels = column_kernels();
  float* top = work_.chunk_top.data() + chunk * stride_;
  double* total = work_.chunk_total.data() + chunk * stride_;
  float* sums = work_.chunk_sums.data() + chunk * stride_ * sum_stride_;
  std::fill(top, top + stride_, kNever);
  std::fill(total, total + stride_, 0.0);
  std::fill(sums, sums + stride_ * sum_stride_, 0.0f);
  float* block_top = scratch.columns.resize(3 * stride_);
  float* shift = block_top + stride_;
  float* block_sums = shift + stride_;
  float* values = scratch.logits.resize(kBlock * stride_);
  const int64_t last = std::min<int64_t>((chunk + 1) * chunk_rows_, set_.shared.size());
  for (int64_t begin = chunk * chunk_rows_; begin < last; begin += kBlock) {
    const int64_t end = std::min(begin + kBlock, last);
    float* block = kept_ ? work_.shared_logits.data() + begin * stride_ : values;
    for (int64_t place = begin; place < end; ++place) {
      work_.shared_bias[place] = products.layer().bias_of(set_.shared[place]);
    }
    std::copy(top, top + stride_, block_top);
    logits(products, begin, end, block, block_top, scratch);
    raise_top(chunk, block_top);
    // Where an example has every neuron so far of its own there is nothing to shift by.
    for (int64_t e = 0; e < stride_; ++e) shift[e] = top[e] == kNever ? 0.0f : top[e];
    kernels.exponentials(block, values, end - begin, stride_, shift, block_sums);
    for (int64_t e = 0; e < stride_; ++e) total[e] += block_sums[e];
    products.add_weights(end - begin, values, sums, scratch.products);
  }
}

void SharedPart::raise_top(int64_t chunk, const float* block_top) {
  float* top = work_.chunk_top.data() + chunk * stride_;
  double* total = work_.chunk_total.data() + chunk * stride_;
  float* sums = work_.chunk_sums.data() + chunk * stride_ * sum_stride_;
  for (int64_t e = 0; e < examples_; ++e) {
    if (!(block_top[e] > top[e])) continue;
    if (top[e] != kNever) {
      const float shrink = exponential(top[e] - block_top[e]);
      total[e] *= shrink;
      float* sum = sums + e * sum_stride_;
      for (int64_t j = 0; j < depth_; ++j) sum[j] *= shrink;
    }
    top[e] = block_top[e];
  }
}

void SharedPart::logits(const BlockProducts& products, int64_t begin, int64_t end, float* logits,
                        float* top, Scratch& scratch) const {
  const std::span<const uint32_t> ids(set_.shared.data() + begin, static_cast<size_t>(end - begin));
  products.logits(ids, logits, scratch.products);
  for (int64_t place = begin; place < end; ++place) {
    for (uint32_t p : set_.pairs_of(set_.shared_rows[place])) {
      logits[(place - begin) * stride_ + set_.example_of[p]] = kNever;  // counted as its own
    }
  }
  column_kernels().complete(logits, end - begin, stride_, work_.shared_bias.data() + begin,
                            set_.drawn.data() + begin, set_.correction.data(), top);
}

float SharedPart::top(int64_t example) const {
  float top = kNever;
  for (int64_t chunk = 0; chunk < chunks_; ++chunk) {
    const float value = work_.chunk_top[chunk * stride_ + example];
    top = value > top ? value : top;
  }
  return top;
}

double SharedPart::total(int64_t example, float shift) const {
  double total = 0;
  for (int64_t chunk = 0; chunk < chunks_; ++chunk) {
    const float top = work_.chunk_top[chunk * stride_ + example];
    // Without any greatest value the sum is zero, or NaN if all its logits are.
    const double part = work_.chunk_total[chunk * stride_ + example];
    total += top == kNever ? part : part * exponential(std::min(top - shift, kGreatest));
  }
  return total;
}

void SharedPart::add_weights(int64_t example, float normaliser, float factor, float* grad) const {
  for (int64_t chunk = 0; chunk < chunks_; ++chunk) {
    const float top = work_.chunk_top[chunk * stride_ + example];
    const float scale =
        top == kNever ? factor : factor * exponential(std::min(top - normaliser, kGreatest));
    const float* sums = work_.chunk_sums.data() + (chunk * stride_ + example) * sum_stride_;
    train_kernels().add_scaled(scale, sums, grad, depth_);
  }
}

void SharedPart::row_gradients(const BlockProducts& products, int64_t begin, int64_t end,
                               const float* normaliser, const float* factor, float* gradients,
                               float* bias, Scratch& scratch) const {
  float* values = scratch.logits.resize(kBlock * stride_);
  const float* from = values;
  if (kept_) {
    from = work_.shared_logits.data() + begin * stride_;
  } else {
    float* top = scratch.columns.resize(stride_);
    std::fill(top, top + stride_, kNever);
    logits(products, begin, end, values, top, scratch);
  }
  column_kernels().gradients(from, values, end - begin, stride_, normaliser, factor, bias);
  products.gradients(end - begin, values, gradients, scratch.products);
}

}  // namespace qcompile

#include "index/dense.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "index/dense_kernels.h"
#include "index/operators.h"

namespace qcompile {
namespace {

constexpr int kLanes = 16;
constexpr int64_t kBlockValues = 1 << 16;  // weights that are multiplied by one batch at a time

const DenseKernels& kernels(Isa isa) {
  if (isa == Isa::kScalar) return kDenseScalar;
  return isa == Isa::kAvx2 ? kDenseAvx2 : kDenseAvx512;
}

void rows_scalar(const Dense& dense, const float* x, int64_t begin, int64_t end, float* scores) {
  for (int64_t row = begin; row < end; ++row) {
    const float* w = dense.weight + row * dense.depth;
    float sums[kLanes] = {};
    for (int64_t j = 0; j < dense.depth; ++j) {
      sums[j % kLanes] = std::fma(w[j], x[j], sums[j % kLanes]);
    }
    for (int width = kLanes / 2; width > 0; width /= 2) {
      for (int lane = 0; lane < width; ++lane) sums[lane] += sums[lane + width];
    }
    scores[row - begin] = sums[0] + dense.bias[row];
  }
}

void transpose_scalar(const Dense& dense, int64_t first, int64_t end, float* panel) {
  for (int64_t lane = 0; lane < kPanelRows; ++lane) {
    const int64_t row = first + lane;
    for (int64_t j = 0; j < dense.depth; ++j) {
      panel[j * kPanelRows + lane] = row < end ? dense.weight[row * dense.depth + j] : 0.0f;
    }
  }
}

void multiply_scalar(const DensePanel& panel, int64_t together, float* scores) {
  std::fill_n(scores, together * kPanelRows, 0.0f);
  for (int64_t j = 0; j < panel.depth; ++j) {
    for (int64_t q = 0; q < together; ++q) {
      for (int64_t lane = 0; lane < kPanelRows; ++lane) {
        float& sum = scores[q * kPanelRows + lane];
        sum = std::fma(panel.rows[j * kPanelRows + lane], panel.queries[j * together + q], sum);
      }
    }
  }
  for (int64_t i = 0; i < together * kPanelRows; ++i) scores[i] += panel.bias[i % kPanelRows];
}

// Asks for `count` values of the weight from `begin` on, while others are multiplied.
void fetch(const Dense& dense, int64_t begin, int64_t count) {
  constexpr int64_t kLine = 64 / sizeof(float);
  constexpr int kSecondCache = 2;
  const int64_t end = std::min(begin + count, dense.rows * dense.depth);
  for (int64_t i = begin; i < end; i += kLine) {
    __builtin_prefetch(dense.weight + i, 0, kSecondCache);
  }
}

// Transposes rows [begin, end) once and multiplies them by one batch of queries after the other,
// each of which writes to few places.
void block_scores(const Dense& dense, const DenseQueries& queries, int64_t begin, int64_t end,
                  std::span<float* const> targets, const DenseKernels& kernel) {
  thread_local std::vector<float> panels;
  const int64_t size = dense.depth * kPanelRows, count = ceil_div(end - begin, kPanelRows);
  panels.resize(static_cast<size_t>(count * size));
  for (int64_t i = 0; i < count; ++i) {
    kernel.transpose(dense, begin + i * kPanelRows, end, panels.data() + i * size);
  }
  float scores[kPanelQueriesMost * kPanelRows], bias[kPanelRows] = {};
  const int64_t share = ceil_div(size, std::ssize(queries.batches()));
  int64_t ahead = end * dense.depth;
  for (const DenseQueries::Batch& batch : queries.batches()) {
    for (int64_t i = 0; i < count; ++i, ahead += share) {
      fetch(dense, ahead, share);
      const int64_t first = i * kPanelRows, there = std::min(kPanelRows, end - begin - first);
      std::copy_n(dense.bias + begin + first, there, bias);
      const DensePanel panel{panels.data() + i * size, batch.values, bias, dense.depth};
      kernel.multiply(panel, batch.together, scores);
      for (int64_t q = 0; q < batch.count; ++q) {
        float* target = targets[static_cast<size_t>(batch.first + q)] + first;
        // A copy of a known length takes a few instructions.
        if (there == kPanelRows) {
          std::copy_n(scores + q * kPanelRows, kPanelRows, target);
        } else {
          std::copy_n(scores + q * kPanelRows, there, target);
        }
      }
    }
  }
}

void panel_scores(const Dense& dense, const DenseQueries& queries, int64_t begin, int64_t end,
                  std::span<float* const> targets, const DenseKernels& kernel) {
  const int64_t panels = std::max<int64_t>(1, kBlockValues / (dense.depth * kPanelRows));
  std::vector<float*> own(targets.begin(), targets.end());
  for (int64_t first = begin; first < end; first += panels * kPanelRows) {
    const int64_t last = std::min(first + panels * kPanelRows, end);
    block_scores(dense, queries, first, last, own, kernel);
    for (float*& target : own) target += last - first;
  }
}

}  // namespace

const DenseKernels kDenseScalar{rows_scalar, transpose_scalar, multiply_scalar};

void DenseQueries::assign(std::vector<const float*> x, int64_t depth) {
  x_ = std::move(x);
  batches_.clear();
  if (size() < kPanelQueries) return;
  // As few batches as possible, none much smaller than the others: small ones waste registers.
  const int64_t batches = ceil_div(size(), kPanelQueriesMost);
  values_.assign(static_cast<size_t>((size() + batches * kQueryStep) * depth), 0.0f);
  float* next = values_.data();
  for (int64_t i = 0, first = 0; i < batches; ++i) {
    const int64_t steps = ceil_div(size() - first, kQueryStep);
    const int64_t together = ceil_div(steps, batches - i) * kQueryStep;
    const int64_t count = std::min(together, size() - first);
    batches_.push_back({first, count, together, next});
    for (int64_t q = 0; q < count; ++q) {
      for (int64_t j = 0; j < depth; ++j) next[j * together + q] = (*this)[first + q][j];
    }
    first += count;
    next += together * depth;
  }
}

void dense_scores(const Dense& dense, const DenseQueries& queries, int64_t begin, int64_t end,
                  std::span<float* const> targets, Isa isa) {
  const DenseKernels& kernel = kernels(isa);
  if (queries.size() >= kPanelQueries) {
    return panel_scores(dense, queries, begin, end, targets, kernel);
  }
  for (int64_t i = 0; i < queries.size(); ++i) {
    kernel.rows(dense, queries[i], begin, end, targets[static_cast<size_t>(i)]);
  }
}

void linear(const Dense& dense, const float* hidden, int64_t count, float* scores,
            const Executor& executor, Isa isa) {
  if (count == 0) return;
  thread_local DenseQueries queries;
  std::vector<const float*> x;
  for (int64_t i = 0; i < count; ++i) x.push_back(hidden + i * dense.depth);
  queries.assign(std::move(x), dense.depth);
  const DenseQueries& shared = queries;        // the calling thread's
  constexpr int64_t kWork = int64_t{1} << 18;  // multiply-adds that are worth waking a thread for
  const int64_t panels = ceil_div(dense.rows, kPanelRows);
  const int64_t grain = ceil_div(kWork, kPanelRows * std::max<int64_t>(dense.depth, 1) * count);
  parallel_for(executor, panels, grain, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * kPanelRows, last = std::min(end * kPanelRows, dense.rows);
    thread_local std::vector<float*> targets;
    targets.clear();
    for (int64_t i = 0; i < count; ++i) targets.push_back(scores + i * dense.rows + first);
    dense_scores(dense, shared, first, last, targets, isa);
  });
}

}  // namespace qcompile

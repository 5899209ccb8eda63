#include "index/dense.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "index/dense_kernels.h"
#include "index/operators.h"

namespace qcompile {
namespace {

constexpr int kLanes = 16;

const DenseKernels& kernels(Isa isa) {
  if (isa == Isa::kScalar) return kDenseScalar;
  return isa == Isa::kAvx2 ? kDenseAvx2 : kDenseAvx512;
}

void rows_scalar(const Dense& dense, const DenseQuery& query, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const float* w = dense.weight + row * dense.depth;
    float sums[kLanes] = {};
    for (int64_t j = 0; j < dense.depth; ++j) {
      sums[j % kLanes] = std::fma(w[j], query.x[j], sums[j % kLanes]);
    }
    for (int width = kLanes / 2; width > 0; width /= 2) {
      for (int lane = 0; lane < width; ++lane) sums[lane] += sums[lane + width];
    }
    query.scores[row] = sums[0] + dense.bias[row];
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

void multiply_scalar(const DensePanel& panel, int64_t together, float* sums) {
  std::fill_n(sums, together * kPanelRows, 0.0f);
  for (int64_t j = 0; j < panel.depth; ++j) {
    for (int64_t q = 0; q < together; ++q) {
      for (int64_t lane = 0; lane < kPanelRows; ++lane) {
        float& sum = sums[q * kPanelRows + lane];
        sum = std::fma(panel.rows[j * kPanelRows + lane], panel.queries[j * together + q], sum);
      }
    }
  }
}

// Queries of one panel, their coordinates side by side.
struct QueryBatch {
  std::span<const DenseQuery> queries;
  int64_t together;  // queries.size(), rounded up to a multiple of kQueryStep
  const float* values;
};

// Splits the queries into batches, and copies their coordinates into `values`.
std::vector<QueryBatch> interleave(std::span<const DenseQuery> queries, int64_t depth,
                                   std::vector<float>& values) {
  // As few batches as possible, none much smaller than the others: small ones waste registers.
  const auto all = static_cast<int64_t>(queries.size());
  const int64_t count_of_batches = ceil_div(all, kPanelQueriesMost);
  values.assign(static_cast<size_t>((all + count_of_batches * kQueryStep) * depth), 0.0f);
  float* next = values.data();
  std::vector<QueryBatch> batches;
  for (int64_t i = 0, first = 0; i < count_of_batches; ++i) {
    const int64_t steps = ceil_div(all - first, kQueryStep);
    const int64_t share = ceil_div(steps, count_of_batches - i) * kQueryStep;
    const auto part = queries.subspan(static_cast<size_t>(first),
                                      static_cast<size_t>(std::min(share, all - first)));
    first += share;
    const auto count = static_cast<int64_t>(part.size());
    const int64_t together = ceil_div(count, kQueryStep) * kQueryStep;
    for (int64_t q = 0; q < count; ++q) {
      const float* x = part[static_cast<size_t>(q)].x;
      for (int64_t j = 0; j < depth; ++j) next[j * together + q] = x[j];
    }
    batches.push_back({part, together, next});
    next += together * depth;
  }
  return batches;
}

// Asks for `count` values of the weight from `begin` on, while others are multiplied.
void fetch(const Dense& dense, int64_t begin, int64_t count) {
  constexpr int64_t kLine = 64 / sizeof(float);
  const int64_t end = std::min(begin + count, dense.rows * dense.depth);
  for (int64_t i = begin; i < end; i += kLine) __builtin_prefetch(dense.weight + i);
}

void panel_scores(const Dense& dense, std::span<const DenseQuery> queries, int64_t begin,
                  int64_t end, const DenseKernels& kernel) {
  thread_local std::vector<float> panel, values;
  panel.resize(static_cast<size_t>(dense.depth * kPanelRows));
  const std::vector<QueryBatch> batches = interleave(queries, dense.depth, values);
  float sums[kPanelQueriesMost * kPanelRows];
  const int64_t share = ceil_div(kPanelRows * dense.depth, std::ssize(batches));
  for (int64_t first = begin; first < end; first += kPanelRows) {
    kernel.transpose(dense, first, end, panel.data());
    const int64_t there = std::min(kPanelRows, end - first);
    int64_t ahead = (first + kPanelRows) * dense.depth;
    for (const QueryBatch& batch : batches) {
      fetch(dense, ahead, share);
      ahead += share;
      kernel.multiply({panel.data(), batch.values, dense.depth}, batch.together, sums);
      const float* from = sums;
      for (const DenseQuery& query : batch.queries) {
        float* to = query.scores + first;
        const float* bias = dense.bias + first;
        for (int64_t lane = 0; lane < there; ++lane) to[lane] = from[lane] + bias[lane];
        from += kPanelRows;
      }
    }
  }
}

}  // namespace

const DenseKernels kDenseScalar{rows_scalar, transpose_scalar, multiply_scalar};

void dense_scores(const Dense& dense, std::span<const DenseQuery> queries, int64_t begin,
                  int64_t end, Isa isa) {
  const DenseKernels& kernel = kernels(isa);
  if (static_cast<int64_t>(queries.size()) >= kPanelQueries) {
    return panel_scores(dense, queries, begin, end, kernel);
  }
  for (const DenseQuery& query : queries) kernel.rows(dense, query, begin, end);
}

void linear(const Dense& dense, const float* hidden, int64_t count, float* scores,
            const Executor& executor, Isa isa) {
  thread_local std::vector<DenseQuery> kept;
  kept.clear();
  for (int64_t i = 0; i < count; ++i) {
    kept.push_back({hidden + i * dense.depth, scores + i * dense.rows});
  }
  const std::span<const DenseQuery> queries = kept;
  if (queries.empty()) return;
  constexpr int64_t kWork = int64_t{1} << 18;  // multiply-adds that are worth waking a thread for
  const int64_t panels = ceil_div(dense.rows, kPanelRows);
  const int64_t grain = ceil_div(kWork, kPanelRows * std::max<int64_t>(dense.depth, 1) * count);
  parallel_for(executor, panels, grain, [&](int64_t begin, int64_t end) {
    dense_scores(dense, queries, begin * kPanelRows, std::min(end * kPanelRows, dense.rows), isa);
  });
}

}  // namespace qcompile

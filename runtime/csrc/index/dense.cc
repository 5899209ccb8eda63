#include "index/dense.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "index/dense_kernels.h"
#include "index/operators.h"

namespace qcompile {
namespace {

constexpr int kLanes = 16;
constexpr int64_t kTogether = 64;  // queries whose sums are kept at once

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

void multiply_scalar(const float* panel, int64_t depth, const DenseQuery* queries, int64_t count,
                     float* sums) {
  for (int64_t q = 0; q < count; ++q) {
    float* out = sums + q * kPanelRows;
    std::fill_n(out, kPanelRows, 0.0f);
    for (int64_t j = 0; j < depth; ++j) {
      for (int64_t lane = 0; lane < kPanelRows; ++lane) {
        out[lane] = std::fma(panel[j * kPanelRows + lane], queries[q].x[j], out[lane]);
      }
    }
  }
}

void panel_scores(const Dense& dense, std::span<const DenseQuery> queries, int64_t begin,
                  int64_t end, const DenseKernels& kernel) {
  thread_local std::vector<float> panel, sums;
  panel.resize(static_cast<size_t>(dense.depth * kPanelRows));
  sums.resize(static_cast<size_t>(kTogether * kPanelRows));
  for (int64_t first = begin; first < end; first += kPanelRows) {
    kernel.transpose(dense, first, end, panel.data());
    const int64_t there = std::min(kPanelRows, end - first);
    for (size_t q = 0; q < queries.size(); q += kTogether) {
      const auto together = std::min<size_t>(kTogether, queries.size() - q);
      kernel.multiply(panel.data(), dense.depth, queries.data() + q, static_cast<int64_t>(together),
                      sums.data());
      for (size_t i = 0; i < together; ++i) {
        const float* from = sums.data() + i * kPanelRows;
        float* to = queries[q + i].scores + first;
        for (int64_t lane = 0; lane < there; ++lane)
          to[lane] = from[lane] + dense.bias[first + lane];
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
  constexpr int64_t kWork = int64_t{1} << 20;  // multiply-adds that are worth waking a thread for
  const int64_t panels = ceil_div(dense.rows, kPanelRows);
  const int64_t grain = ceil_div(kWork, kPanelRows * std::max<int64_t>(dense.depth, 1) * count);
  parallel_for(executor, panels, grain, [&](int64_t begin, int64_t end) {
    dense_scores(dense, queries, begin * kPanelRows, std::min(end * kPanelRows, dense.rows), isa);
  });
}

}  // namespace qcompile

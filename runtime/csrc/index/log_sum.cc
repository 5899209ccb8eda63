#include "index/log_sum.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "index/dense.h"
#include "index/exponential.h"
#include "index/log_sum_scan.h"
#include "index/operators.h"
#include "index/rescore.h"

namespace qcompile {
namespace {

constexpr int64_t kDenseRows = 16 * kPanelRows;  // rows whose scores are kept at once
constexpr int64_t kDenseTogether = 64;           // queries that share them

// The sum of exp(score - best) of rows [first, first + dense.rows) of a layer, for each query.
void sum_rows(const Dense& dense, std::span<const DenseSum> queries, double* sums, Isa isa) {
  thread_local std::vector<float> scores;
  thread_local std::vector<DenseQuery> together;
  scores.resize(queries.size() * kDenseRows);
  together.clear();
  for (size_t i = 0; i < queries.size(); ++i) {
    together.push_back({queries[i].x, scores.data() + i * kDenseRows});
  }
  dense_scores(dense, together, 0, dense.rows, isa);
  for (size_t i = 0; i < queries.size(); ++i) {
    float* own = together[i].scores;
    const float best = queries[i].best;
    const float most = greatest(own, dense.rows, isa);
    sums[i] = most - best < 1 ? exponentials(own, dense.rows, best, isa) : std::nan("");
    if (!std::isnan(sums[i])) continue;
    // Sums in fp32 went out of its range on their way, or nearly.
    thread_local std::vector<double> x;
    x.assign(queries[i].x, queries[i].x + dense.depth);
    for (int64_t row = 0; row < dense.rows; ++row) {
      own[row] = score_kernel(isa)(dense, row, x.data());
    }
    sums[i] = exponentials(own, dense.rows, best, isa);
  }
}

// Answers those of the queries [count, depth] that the scan has not ranked.
void rank_others(const Head& head, const float* hidden, std::span<const LogSumQuery> known,
                 int64_t k, float* scores, int64_t* ids, const Executor& executor, Isa isa) {
  std::vector<int64_t> others;
  std::vector<float> x;
  for (size_t i = 0; i < known.size(); ++i) {
    if (known[i].ranked) continue;
    others.push_back(static_cast<int64_t>(i));
    const float* from = hidden + others.back() * head.depth();
    x.insert(x.end(), from, from + head.depth());
  }
  if (others.empty()) return;
  const auto size = others.size() * static_cast<size_t>(k);
  std::vector<float> found(size);
  std::vector<int64_t> rows(size);
  linear_top_k(head, x.data(), std::ssize(others), k, found.data(), rows.data(), executor, isa);
  for (size_t i = 0; i < others.size(); ++i) {
    const auto from = static_cast<std::ptrdiff_t>(i) * k;
    std::copy_n(found.begin() + from, k, scores + others[i] * k);
    std::copy_n(rows.begin() + from, k, ids + others[i] * k);
  }
}

}  // namespace

void dense_log_sums(const Dense& dense, std::span<const DenseSum> queries, const Executor& executor,
                    Isa isa) {
  std::vector<DenseSum> some;
  for (const DenseSum& query : queries) {
    // A greatest score that is no number, or infinite, is the sum's logarithm as well.
    *query.log_sum = query.best;
    if (std::isfinite(query.best)) some.push_back(query);
  }
  const int64_t pieces = ceil_div(dense.rows, kDenseRows);
  for (size_t first = 0; first < some.size(); first += kDenseTogether) {
    const auto group = std::span<const DenseSum>(some).subspan(first).first(
        std::min<size_t>(kDenseTogether, some.size() - first));
    std::vector<double> sums(group.size() * static_cast<size_t>(pieces));
    executor.run(pieces, [&](int64_t piece) {
      const int64_t row = piece * kDenseRows;
      const Dense part{dense.weight + row * dense.depth, dense.bias + row,
                       std::min(kDenseRows, dense.rows - row), dense.depth};
      sum_rows(part, group, sums.data() + piece * std::ssize(group), isa);
    });
    for (size_t i = 0; i < group.size(); ++i) {
      double sum = 0;
      for (size_t at = i; at < sums.size(); at += group.size()) sum += sums[at];
      *group[i].log_sum = static_cast<float>(group[i].best + std::log(sum));
    }
  }
}

void linear_top_k_log_sum(const Head& head, const float* hidden, int64_t count, int64_t k,
                          float* scores, int64_t* ids, float* log_sums, const Executor& executor,
                          Isa isa) {
  const bool scan = head.packed() && k >= 1 && 8 * k <= head.rows() && k <= head.tiles();
  thread_local LogSumWorkspace workspace;
  std::vector<DenseSum> unsummed;
  const SerialExecutor serial;
  const auto executor_for = [&](int64_t queries) -> const Executor& {
    const bool small = head.rows() * head.depth() < kParallelWork / queries;
    return small ? static_cast<const Executor&>(serial) : executor;
  };
  for (int64_t first = 0; first < count; first += kDotQueries) {
    const int64_t group = std::min(kDotQueries, count - first);
    const float* x = hidden + first * head.depth();
    float* best = scores + first * k;
    const Executor& used = executor_for(group);
    std::vector<LogSumQuery> known(static_cast<size_t>(group));
    if (scan) {
      known = LogSumScan(head, x, group, k, used, isa, workspace)
                  .run(best, ids + first * k, log_sums + first);
    }
    rank_others(head, x, known, k, best, ids + first * k, used, isa);
    for (int64_t i = 0; i < group; ++i) {
      if (known[static_cast<size_t>(i)].summed) continue;
      unsummed.push_back({x + i * head.depth(), best[i * k], log_sums + first + i});
    }
  }
  dense_log_sums(head.dense(), unsummed, executor_for(std::max<int64_t>(1, std::ssize(unsummed))),
                 isa);
}

}  // namespace qcompile

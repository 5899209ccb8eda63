#include "index/log_sum.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "index/dense.h"
#include "index/dense_top_k.h"
#include "index/exponential.h"
#include "index/flat_queries.h"
#include "index/log_sum_scan.h"
#include "index/operators.h"
#include "index/rescore.h"

namespace qcompile {
namespace {

constexpr int64_t kDenseRows = 1024;  // rows whose scores are kept at once
// Queries whose fp32 scores cost less together than the look at rows that need it, one by one.
constexpr int64_t kMany = 4;
constexpr int64_t kFlatShare = 4;  // see find_flat()

// The sum of exp(score - best) of rows [begin, end), whose fp32 scores are given and overwritten.
double sum_rows(const Dense& dense, const DenseSum& query, int64_t begin, int64_t end,
                float* scores, Isa isa) {
  const int64_t rows = end - begin;
  const float most = greatest(scores, rows, isa);
  if (most - query.best < 1) {
    const double sum = exponentials(scores, rows, query.best, isa);
    if (!std::isnan(sum)) return sum;
  }
  // Sums in fp32 went out of its range on their way, or nearly.
  const std::vector<double> x(query.x, query.x + dense.depth);
  for (int64_t row = begin; row < end; ++row) {
    scores[row - begin] = score_kernel(isa)(dense, row, x.data());
  }
  return exponentials(scores, rows, query.best, isa);
}

// Answers queries that neither scan nor fp32 scores have ranked.
void rank(const Head& head, std::span<const DenseAnswer> queries, int64_t k,
          const Executor& executor, Isa isa) {
  std::vector<DenseSum> sums;
  for (const DenseAnswer& query : queries) {
    linear_top_k(head, query.x, 1, k, query.scores, query.ids, executor, isa);
    sums.push_back({query.x, query.scores[0], query.log_sum});
  }
  dense_log_sums(head.dense(), sums, executor, isa);
}

// As linear_top_k_log_sum(), for kDotQueries queries at most.
void rank_group(const Head& head, std::span<const DenseAnswer> queries, int64_t k,
                const Executor& executor, Isa isa) {
  // Each tile has one row that bounds the k-th best.
  const bool bounded = head.packed() && 8 * k <= head.rows() && k <= head.tiles();
  std::vector<DenseAnswer> left(queries.begin(), queries.end());
  if (bounded && std::ssize(queries) < kMany) {
    const auto flat =
        std::stable_partition(left.begin(), left.end(), [&](const DenseAnswer& query) {
          return !find_flat(head, query.x, 1, kFlatShare, isa).front();
        });
    thread_local LogSumWorkspace workspace;
    const std::span<const DenseAnswer> peaked(left.begin(), flat);
    std::vector<DenseAnswer> open(flat, left.end());
    if (!peaked.empty()) {
      const auto more = LogSumScan(head, peaked, k, executor, isa, workspace).run();
      open.insert(open.end(), more.begin(), more.end());
    }
    left = std::move(open);
  }
  if (bounded && head.dense().weight != nullptr) {
    std::vector<char> answered(left.size());
    dense_top_k(head, left, k, answered.data(), executor, isa);
    size_t kept = 0;
    for (size_t i = 0; i < left.size(); ++i) {
      if (!answered[i]) left[kept++] = left[i];
    }
    left.resize(kept);
  }
  rank(head, left, k, executor, isa);
}

}  // namespace

void dense_log_sums(const Dense& dense, std::span<const DenseSum> queries, const Executor& executor,
                    Isa isa) {
  std::vector<DenseSum> some;
  std::vector<const float*> x;
  for (const DenseSum& query : queries) {
    // A greatest score that is no number, or infinite, is the sum's logarithm as well.
    *query.log_sum = query.best;
    if (!std::isfinite(query.best)) continue;
    some.push_back(query);
    x.push_back(query.x);
  }
  if (some.empty()) return;
  DenseQueries hidden;
  hidden.assign(std::move(x), dense.depth);
  const int64_t pieces = ceil_div(dense.rows, kDenseRows);
  std::vector<double> sums(some.size() * static_cast<size_t>(pieces));
  executor.run(pieces, [&](int64_t piece) {
    const int64_t begin = piece * kDenseRows, end = std::min(begin + kDenseRows, dense.rows);
    std::vector<float> scores(some.size() * kDenseRows);
    std::vector<float*> targets;
    for (size_t i = 0; i < some.size(); ++i) targets.push_back(scores.data() + i * kDenseRows);
    dense_scores(dense, hidden, begin, end, targets, isa);
    double* own = sums.data() + piece * std::ssize(some);
    for (size_t i = 0; i < some.size(); ++i) {
      own[i] = sum_rows(dense, some[i], begin, end, targets[i], isa);
    }
  });
  for (size_t i = 0; i < some.size(); ++i) {
    double sum = 0;
    for (size_t at = i; at < sums.size(); at += some.size()) sum += sums[at];
    *some[i].log_sum = static_cast<float>(some[i].best + std::log(sum));
  }
}

void linear_top_k_log_sum(const Head& head, const float* hidden, int64_t count, int64_t k,
                          float* scores, int64_t* ids, float* log_sums, const Executor& executor,
                          Isa isa) {
  const SerialExecutor serial;
  for (int64_t first = 0; first < count; first += kDotQueries) {
    const int64_t group = std::min(kDotQueries, count - first);
    const bool small = head.rows() * head.depth() < kParallelWork / group;
    std::vector<DenseAnswer> queries;
    for (int64_t i = first; i < first + group; ++i) {
      queries.push_back({hidden + i * head.depth(), scores + i * k, ids + i * k, log_sums + i});
    }
    rank_group(head, queries, k, small ? static_cast<const Executor&>(serial) : executor, isa);
  }
}

}  // namespace qcompile

#include "index/dense_softmax.h"

#include <limits>
#include <utility>
#include <vector>

#include "index/dense.h"
#include "index/exponential.h"
#include "index/piece_sum.h"

namespace qcompile {
namespace {

constexpr int64_t kPieceRows = 1024;  // rows whose scores are handled at once
static_assert(kPieceRows % kPanelRows == 0);

// Of scores that are not all numbers and finite, as any softmax has it.
void plain_softmax(const Dense& dense, const SoftmaxQuery& query, Isa isa) {
  DenseQueries alone;
  alone.assign({query.x}, dense.depth);
  float* row = query.probabilities;
  dense_scores(dense, alone, 0, dense.rows, std::span(&row, 1), isa);
  const float best = greatest(row, dense.rows, isa);
  const double total = exponentials(row, dense.rows, best, isa);
  scale_values(row, dense.rows, static_cast<float>(1 / total), isa);
}

}  // namespace

void dense_softmax(const Dense& dense, std::span<const SoftmaxQuery> queries,
                   const Executor& executor, Isa isa) {
  if (queries.empty()) return;
  std::vector<const float*> x;
  for (const SoftmaxQuery& query : queries) x.push_back(query.x);
  DenseQueries hidden;
  hidden.assign(std::move(x), dense.depth);
  const size_t count = queries.size();
  const int64_t pieces = ceil_div(dense.rows, kPieceRows);
  std::vector<PieceSum> sums(count * static_cast<size_t>(pieces));
  executor.run(pieces, [&](int64_t piece) {
    const int64_t first = piece * kPieceRows, last = std::min(first + kPieceRows, dense.rows);
    thread_local std::vector<float*> targets;
    targets.clear();
    for (const SoftmaxQuery& query : queries) targets.push_back(query.probabilities + first);
    dense_scores(dense, hidden, first, last, targets, isa);
    PieceSum* own = sums.data() + piece * std::ssize(queries);
    for (size_t i = 0; i < count; ++i) own[i] = sum_piece(targets[i], last - first, isa);
  });
  executor.run(std::ssize(queries), [&](int64_t i) {
    const auto query = static_cast<size_t>(i);
    PieceSum whole{-std::numeric_limits<float>::infinity(), 0};
    for (size_t at = query; at < sums.size(); at += count) accumulate(whole, sums[at]);
    if (!(whole.sum > 0)) return plain_softmax(dense, queries[query], isa);
    for (int64_t piece = 0; piece < pieces; ++piece) {
      const int64_t first = piece * kPieceRows, last = std::min(first + kPieceRows, dense.rows);
      const double apart =
          static_cast<double>(sums[query + static_cast<size_t>(piece) * count].shift) - whole.shift;
      scale_values(queries[query].probabilities + first, last - first,
                   static_cast<float>(std::exp(apart) / whole.sum), isa);
    }
  });
}

}  // namespace qcompile

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

#include "index/best_scores.h"
#include "index/cell_choice.h"
#include "index/cell_scan.h"
#include "index/cells.h"
#include "index/log_sum.h"
#include "index/operators.h"
#include "index/query.h"
#include "index/rescore.h"

namespace qcompile {
namespace {

// Queries whose cells are read together.
constexpr int64_t kTogether = 64;

struct alignas(64) Line {
  uint8_t bytes[64];
};

// Searches for some queries at a time, one thread's; its memory is kept from one batch to the next.
class Search {
 public:
  // Up to kTogether queries x [count, depth], one with a guard; done [count] is false where every
  // score has to be computed.
  void run(const CellIndex& index, const CellSearch& search, Isa isa, const float* x, int64_t count,
           float* scores, int64_t* ids, float* log_sums, char* done) {
    index_ = &index;
    search_ = &search;
    isa_ = isa;
    x_ = x;
    encode_all(count);
    choose(count);
    std::fill_n(sums_, count, PieceSum{-std::numeric_limits<float>::infinity(), 0});
    scan_.run(best_, sums());
    if (search.guard > 0) widen();
    // While the rows of one query are scored those of the next are on their way.
    std::fill_n(done, count, char{0});
    for (int64_t i = 0; i <= count; ++i) {
      if (i < count) find_rows(i);
      if (i < count && search.sum) add_scores(i, -1);
      if (i == 0) continue;
      const int64_t query = i - 1;
      done[query] = write(query, scores + query * search.k, ids + query * search.k);
      if (done[query] && search.sum) log_sums[query] = log_sum(query, scores[query * search.k]);
    }
  }

 private:
  int64_t lines() const { return ceil_div(index_->steps() * kBlockDepth, sizeof(Line)); }
  const float* x(int64_t query) const { return x_ + query * index_->dense().depth; }
  const uint8_t* encoded(int64_t query) const {
    return encoded_[static_cast<size_t>(query * lines())].bytes;
  }

  void encode_all(int64_t count) {
    encoded_.resize(static_cast<size_t>(lines() * count));
    for (int64_t i = 0; i < count; ++i) {
      uint8_t* values = encoded_[static_cast<size_t>(i * lines())].bytes;
      queries_[i] = encode(x(i), index_->dense().depth, values, isa_);
      askers_[i] = {.values = values, .scale = queries_[i].scale, .sum = queries_[i].sum};
    }
    if (index_->coded()) take_offsets_away(count);
  }

  // Codes are multiplied with the values themselves.
  void take_offsets_away(int64_t count) {
    signed_.resize(encoded_.size());
    const int64_t bytes = index_->steps() * kBlockDepth;
    for (int64_t i = 0; i < count; ++i) {
      uint8_t* to = signed_[static_cast<size_t>(i * lines())].bytes;
      for (int64_t j = 0; j < bytes; ++j) to[j] = encoded(i)[j] ^ 0x80;
      std::fill(to + bytes, to + lines() * static_cast<int64_t>(sizeof(Line)), uint8_t{0});
      askers_[i].values = to;
    }
  }

  void choose(int64_t count) {
    scan_.start(*index_, askers_, count, isa_);
    choice_.start(*index_, *search_, isa_);
    // Products of scales may be flushed to zero, and dot products are as large as this.
    const float most_dot = 127.0f * 127.0f * static_cast<float>(index_->dense().depth) + 16;
    const float flushed = 2 * std::numeric_limits<float>::min() * most_dot;
    for (int64_t i = 0; i < count; ++i) {
      const float width = queries_[i].width(index_->error(), index_->norm()) + flushed;
      const int64_t most = std::max(search_->k, search_->rescore);
      // Codes are off by so much that the bound would exclude nothing.
      if (index_->coded()) best_[i].start(most, most, 0, isa_);
      if (!index_->coded()) best_[i].start(most, search_->k, 2 * width, isa_);
      if (!queries_[i].finite) continue;
      choice_.choose(queries_[i], encoded(i));
      scan_.ask(i, choice_.cells());
      if (search_->sum && search_->guard == 0) rest_[i] = choice_.rest();
    }
  }

  // Searches every further cell whose bound reaches the k-th best score of the only query, the
  // greatest bound first.
  void widen() {
    if (!queries_[0].finite) return;
    float least = kth_best();
    uint32_t searched = 0;
    for (uint64_t key : choice_.others(least)) {
      if (score_of(key) < least) break;
      const int64_t cell = place_of(key);
      const ScoredCell found{static_cast<int32_t>(cell), choice_.score_of_cell(cell)};
      scan_.ask(0, {&found, 1});
      scan_.run(best_, sums());
      if (!index_->coded() || std::has_single_bit(++searched)) least = kth_best();
      if (search_->sum) choice_.leave_out(cell);
    }
    if (search_->sum) rest_[0] = choice_.rest();
  }

  // The k-th best score that the only query has found. The best of many codes' scores are too large
  // rather than too small, so of the rows that are best by their codes it is the k-th final score.
  float kth_best() {
    if (!index_->coded()) return best_[0].kth_best();
    find_rows(0);
    std::vector<Ranked>& rows = rows_[0];
    if (std::ssize(rows) < search_->k) return -std::numeric_limits<float>::infinity();
    std::vector<float> scores(static_cast<size_t>(search_->k));
    std::vector<int64_t> ids(scores.size());
    write(0, scores.data(), ids.data());
    return scores.back();
  }

  void find_rows(int64_t query) {
    std::vector<Ranked>& rows = rows_[query % 2];
    rows.clear();
    if (!queries_[query].finite) return;
    for (uint64_t key : best_[query].finish()) {
      const int32_t row = index_->id(place_of(key));
      if (row < 0) continue;
      prefetch_row(index_->dense(), row);
      rows.push_back({score_of(key), row});
    }
  }

  // Adds the exponentials of the scores that rows have now, or takes them out of the sum.
  void add_scores(int64_t query, double sign) {
    exponents_.clear();
    for (const Ranked& row : rows_[query % 2]) exponents_.push_back(row.score);
    PieceSum sum = sum_piece(exponents_.data(), std::ssize(exponents_), isa_);
    sum.sum *= sign;
    accumulate(sums_[query], sum);
  }

  // `best` is the greatest score.
  float log_sum(int64_t query, float best) {
    if (!std::isfinite(best)) return best;
    add_scores(query, 1);
    accumulate(sums_[query], rest_[query]);
    return static_cast<float>(sums_[query].shift + std::log(sums_[query].sum));
  }

  bool write(int64_t query, float* scores, int64_t* ids) {
    std::vector<Ranked>& rows = rows_[query % 2];
    if (std::ssize(rows) < search_->k) return false;
    const Dense& dense = index_->dense();
    doubled_.assign(x(query), x(query) + dense.depth);
    write_best(dense, doubled_.data(), rows, search_->k, scores, ids, isa_);
    return true;
  }

  PieceSum* sums() { return search_->sum ? sums_ : nullptr; }

  const CellIndex* index_ = nullptr;
  const CellSearch* search_ = nullptr;
  Isa isa_ = Isa::kScalar;
  const float* x_ = nullptr;
  std::vector<Line> encoded_;
  Query queries_[kTogether];
  std::vector<Line> signed_;
  CellQuery askers_[kTogether];
  BestScores best_[kTogether];
  CellChoice choice_;
  CellScan scan_;
  std::vector<Ranked> rows_[2];
  std::vector<double> doubled_;
  // With `sum`: what the rows scored add to the partition function, and the cells not searched.
  PieceSum sums_[kTogether], rest_[kTogether];
  std::vector<float> exponents_;
};

}  // namespace

void cells_top_k(const CellIndex& index, const CellSearch& search, const float* hidden,
                 int64_t count, float* scores, int64_t* ids, float* log_sums,
                 const Executor& executor, Isa isa) {
  const Dense& dense = index.dense();
  if (search.k < 1 || search.k > dense.rows) {
    throw std::invalid_argument("k is " + std::to_string(search.k) + ", expected 1 to " +
                                std::to_string(dense.rows));
  }
  std::vector<char> done(static_cast<size_t>(count));
  // Few ranges: the more queries one has, the more cells they share.
  const int64_t grain = std::max<int64_t>(8, ceil_div(count, executor.threads()));
  parallel_for(executor, count, grain, [&](int64_t begin, int64_t end) {
    thread_local Search some;
    const int64_t together = search.guard > 0 ? 1 : kTogether;
    for (int64_t i = begin; i < end; i += together) {
      some.run(index, search, isa, hidden + i * dense.depth, std::min(together, end - i),
               scores + i * search.k, ids + i * search.k, search.sum ? log_sums + i : nullptr,
               done.data() + i);
    }
  });
  for (int64_t i = 0; i < count; ++i) {
    if (done[static_cast<size_t>(i)]) continue;
    const float* x = hidden + i * dense.depth;
    float* best = scores + i * search.k;
    linear_top_k(Head(dense), x, 1, search.k, best, ids + i * search.k, executor, isa);
    if (!search.sum) continue;
    const DenseSum sum{x, best[0], log_sums + i};
    dense_log_sums(dense, {&sum, 1}, executor, isa);
  }
}

}  // namespace qcompile

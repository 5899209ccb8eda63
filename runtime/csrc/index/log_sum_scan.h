// One scan of the packed rows for both: the k best scores, and the sum of the exponentials of all.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <span>
#include <vector>

#include "core/isa.h"
#include "core/parallel.h"
#include "index/dense_top_k.h"
#include "index/head.h"
#include "index/ranked.h"
#include "index/scan.h"

namespace qcompile {

// The sum of the exponentials of a tile's approximate scores, and what bounds its final ones.
struct TileSum {
  float shift;  // some finite number near the greatest score
  float sum;    // of exp(score - shift); NaN if a score is no number or has no bound
  float width;  // what a score may be off, but for roundings
  float upper;  // the greatest upper bound of a row, but for roundings; NaN is passed over
  float least;  // some row's final score is at least this
};

// What is known of one query. Exponentials are taken of scores less `reference`.
struct LogSumQuery {
  float reference = 0;  // a final score, or below one
  float bar = 0;        // rows whose upper bound is not below it may be among the k best
  float budget = 0;     // what the rows of a tile may change the sum by and need no rescoring
  double sum = 0, change = 0;  // of the tiles that are not looked at again, and its possible error
  bool answered = false;       // as far as is known
};

// The rows of one piece of the layer for one query.
struct LogSumPiece {
  std::vector<Ranked> rows;    // rescored
  double sum = 0, change = 0;  // of the other rows of tiles that were looked at again
};

// Buffers of one call, kept by the calling thread.
struct LogSumWorkspace {
  QueryGroup group;
  std::vector<TileSum> tiles;  // of each query and tile
  std::vector<char> again;     // likewise: whether a tile is looked at again
  std::vector<LogSumQuery> queries;
  std::vector<LogSumPiece> pieces;         // of each query and piece
  std::deque<std::atomic<int64_t>> found;  // of each query, rows to be rescored
  std::vector<float> hidden;               // [count, depth]
  std::vector<double> x;                   // the same
  std::vector<float> finals;
  std::vector<Ranked> ranked;
};

// For a few queries. The head has packed rows and at least k tiles.
class LogSumScan {
 public:
  LogSumScan(const Head& head, std::span<const DenseAnswer> queries, int64_t k,
             const Executor& executor, Isa isa, LogSumWorkspace& workspace);

  // Returns the queries that are not answered.
  std::vector<DenseAnswer> run();

 private:
  LogSumPiece& piece_of(int64_t query, int64_t piece) const {
    return w_.pieces[static_cast<size_t>(query * pieces_ + piece)];
  }
  std::span<TileSum> tiles_of(int64_t query) const {
    return std::span(w_.tiles).subspan(static_cast<size_t>(query * head_.tiles()),
                                       static_cast<size_t>(head_.tiles()));
  }
  std::span<char> again_of(int64_t query) const {
    return std::span(w_.again).subspan(static_cast<size_t>(query * head_.tiles()),
                                       static_cast<size_t>(head_.tiles()));
  }
  bool given_up(int64_t query) const {
    return w_.found[static_cast<size_t>(query)].load(std::memory_order_relaxed) > room_;
  }
  float unscaled(int64_t query) const { return head_.unscaled_error() * w_.group[query].norm; }
  float rounding(int64_t query) const;

  const int8_t* merged(const Tile& tile) const;
  void sum_tiles(int64_t piece);
  TileSum sum_tile(const Tile& tile, const int32_t* dots, float scale, int64_t query) const;
  void choose(int64_t query);
  bool choose_tiles(int64_t query);
  void look_again(int64_t piece);
  void look_at(const Tile& tile, const int32_t* dots, int64_t query, LogSumPiece& piece);
  uint64_t sum_light(float* scores, float* upper, uint64_t kept, int64_t query,
                     LogSumPiece& piece) const;
  void rescore(int64_t query, LogSumPiece& piece) const;
  bool finish(int64_t query);

  const Head& head_;
  const std::span<const DenseAnswer> queries_;
  const int64_t count_;
  const int64_t k_;
  const Executor& executor_;
  const Isa isa_;
  LogSumWorkspace& w_;
  const int64_t pieces_;
  const int64_t room_;  // rows of a query that may be rescored
};

}  // namespace qcompile

// Approximate scores of the rows of cells, for several queries: a cell that more than one asks for
// is read once.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "index/best_scores.h"
#include "index/cells.h"
#include "index/piece_sum.h"

namespace qcompile {

// A cell to be searched, and its score without what its spread adds.
struct ScoredCell {
  int32_t cell;
  float score;
};

// One thread's scans, one batch of queries after the other. Which queries are scanned together does
// not change what each finds.
class CellScan {
 public:
  // The values of `queries` [count] have to stay where they are until the next start.
  void start(const CellIndex& index, const CellQuery* queries, int64_t count, Isa isa);

  // Lets `query` search cells; best in the order of memory, as of many cells some lie side by side.
  void ask(int64_t query, std::span<const ScoredCell> cells);
  // Offers the scores of all rows in cells asked for so far to the best of each query [count].
  // Unless it is null, `sums` [count] get their exponentials added.
  void run(BestScores* best, PieceSum* sums);

 private:
  struct Visit {
    int32_t cell, query;
    float score;  // of the cell
  };
  // A run of the list of blocks and who asks for it.
  struct Part {
    int64_t first, blocks;  // of list_
    int64_t asker, askers;  // of sorted_, or the only query
  };
  // Scores of one query that have not been offered yet.
  struct Waiting {
    std::vector<float> scores;
    std::vector<int32_t> list;
    int64_t listed = 0;
  };

  void divide();
  void sort_by_cell();
  void list_alone(const std::vector<Visit>& visits);
  void list_cell(const Visit& visit);
  void scan_alone(const Part& part, BestScores& best);
  void scan_together(const Part& part, BestScores* best);
  BlockList piece(const Part& part, int64_t at, int64_t most) const;
  CellQuery asker(int64_t query, const BlockList& blocks);
  void score(const BlockList& blocks, const CellQuery* queries, int64_t count) const;
  void offer(int64_t query, BestScores& best);

  const CellIndex* index_ = nullptr;
  const CellQuery* queries_ = nullptr;
  int64_t count_ = 0;
  Isa isa_ = Isa::kScalar;
  PieceSum* sums_ = nullptr;
  std::vector<Visit> visits_, sorted_, alone_;
  std::vector<int32_t> next_;  // of each cell, a place in sorted_
  std::vector<int32_t> list_;  // of blocks of rows
  std::vector<float> bases_;   // of each, the score of its cell
  std::vector<Part> parts_;
  std::vector<Waiting> waiting_;  // of each query
};

}  // namespace qcompile

// Which cells are searched for a query: those of the best centroids, looked for in the best groups.
#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "index/best_scores.h"
#include "index/cell_scan.h"
#include "index/cells.h"
#include "index/piece_sum.h"
#include "index/query.h"

namespace qcompile {

// One thread's choices, one query after the other.
class CellChoice {
 public:
  void start(const CellIndex& index, const CellSearch& search, Isa isa);

  // Chooses for a query, encoded with the offset of its values: the `probes` best cells of the best
  // groups if they hold k rows, otherwise as many of all cells as do.
  void choose(const Query& query, const uint8_t* encoded);
  // The cells chosen, in the order of memory.
  std::span<const ScoredCell> cells() const { return cells_; }
  // With a guard, and once: rank keys of the bounds of all cells that were not chosen and reach
  // `least`, the greatest first.
  std::span<const uint64_t> others(float least);
  // The score of a cell in the groups that were looked through.
  float score_of_cell(int64_t cell) const {
    const int32_t block = listed_[static_cast<size_t>(cell / kBlockRows)];
    return cell_scores_[static_cast<size_t>(block * kBlockRows + cell % kBlockRows)];
  }
  // With `sum`, and once: what the cells that were not chosen add to the partition function; see
  // CellIndex::mass(). Without those that leave_out() names.
  PieceSum rest();
  void leave_out(int64_t cell) {
    masses_[static_cast<size_t>(cell)] = -std::numeric_limits<float>::infinity();
  }

 private:
  bool search_all() const {
    return search_->guard > 0 || search_->sum || search_->groups >= index_->groups();
  }
  void list_groups();
  void list_all();
  void score_blocks(const PackedBlocks& blocks, const std::vector<int32_t>& list, int64_t count,
                    std::vector<float>& scores) const;
  void score();
  bool take(int64_t probes);
  void weigh();
  void deviate(int64_t first, int64_t count, float factor, float* scores) const;

  const CellIndex* index_ = nullptr;
  const CellSearch* search_ = nullptr;
  Isa isa_ = Isa::kScalar;
  const Query* query_ = nullptr;
  const uint8_t* encoded_ = nullptr;
  std::vector<int32_t> every_block_;  // 0, 1, 2 …
  std::vector<float> scores_;         // of the groups
  std::vector<int32_t> list_;         // of blocks of centroids
  std::vector<int32_t> listed_;       // of each block, where the list has it
  std::vector<float> cell_scores_;    // of those listed
  std::vector<float> promises_;       // the same with the spread that counts
  std::vector<float> masses_;         // with `sum`, of all cells, theirs added to the score
  std::vector<uint64_t> greatest_, others_;
  std::vector<ScoredCell> cells_;
  BestScores best_;
};

}  // namespace qcompile

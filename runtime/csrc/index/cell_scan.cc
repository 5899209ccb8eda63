#include "index/cell_scan.h"

#include <algorithm>
#include <numeric>

namespace qcompile {
namespace {

// Blocks whose scores are kept at once: half of a first-level cache.
constexpr int64_t kListed = 256;
// Blocks and queries that are scored together: both fit a first-level cache.
constexpr int64_t kPiece = 16;
constexpr int64_t kAskers = 16;

}  // namespace

void CellScan::start(const CellIndex& index, const CellQuery* queries, int64_t count, Isa isa) {
  index_ = &index;
  queries_ = queries;
  count_ = count;
  isa_ = isa;
  visits_.clear();
  while (std::ssize(waiting_) < count) {
    waiting_.push_back({std::vector<float>(kListed * kBlockRows), std::vector<int32_t>(kListed)});
  }
}

void CellScan::ask(int64_t query, std::span<const ScoredCell> cells) {
  for (const ScoredCell& each : cells) {
    visits_.push_back({each.cell, static_cast<int32_t>(query), each.score});
  }
}

void CellScan::run(BestScores* best, PieceSum* sums) {
  sums_ = sums;
  divide();
  for (const Part& part : parts_) {
    if (part.askers > 1) scan_together(part, best);
  }
  for (const Part& part : parts_) {
    if (part.askers == 1) scan_alone(part, best[part.asker]);
  }
  for (int64_t query = 0; query < count_; ++query) offer(query, best[query]);
  visits_.clear();
}

// Cells that several queries ask for, in the order of memory; then those of one query alone, query
// by query, so that one list has them all.
void CellScan::divide() {
  list_.clear();
  bases_.clear();
  parts_.clear();
  if (count_ == 1) return list_alone(visits_);
  sort_by_cell();
  alone_.clear();
  for (size_t begin = 0, end = 0; begin < sorted_.size(); begin = end) {
    const int32_t cell = sorted_[begin].cell;
    while (end < sorted_.size() && sorted_[end].cell == cell) ++end;
    if (end - begin == 1) {
      alone_.push_back(sorted_[begin]);
      continue;
    }
    Part part{std::ssize(list_), 0, static_cast<int64_t>(begin), static_cast<int64_t>(end - begin)};
    list_cell(sorted_[begin]);
    part.blocks = std::ssize(list_) - part.first;
    parts_.push_back(part);
  }
  std::stable_sort(alone_.begin(), alone_.end(),
                   [](const Visit& a, const Visit& b) { return a.query < b.query; });
  list_alone(alone_);
}

// By counting: there are as many visits as queries times probes.
void CellScan::sort_by_cell() {
  next_.assign(static_cast<size_t>(index_->cells()) + 1, 0);
  for (const Visit& visit : visits_) ++next_[static_cast<size_t>(visit.cell) + 1];
  std::partial_sum(next_.begin(), next_.end(), next_.begin());
  sorted_.resize(visits_.size());
  for (const Visit& visit : visits_) {
    sorted_[static_cast<size_t>(next_[static_cast<size_t>(visit.cell)]++)] = visit;
  }
}

// Visits of one query after those of another.
void CellScan::list_alone(const std::vector<Visit>& visits) {
  for (size_t begin = 0, end = 0; begin < visits.size(); begin = end) {
    const int32_t query = visits[begin].query;
    Part part{std::ssize(list_), 0, query, 1};
    for (; end < visits.size() && visits[end].query == query; ++end) list_cell(visits[end]);
    part.blocks = std::ssize(list_) - part.first;
    parts_.push_back(part);
  }
}

void CellScan::list_cell(const Visit& visit) {
  const int32_t first = index_->first_block(visit.cell);
  const size_t at = list_.size();
  list_.resize(at + static_cast<size_t>(index_->first_block(visit.cell + 1) - first));
  std::iota(list_.begin() + static_cast<std::ptrdiff_t>(at), list_.end(), first);
  bases_.resize(list_.size(), visit.score);
}

BlockList CellScan::piece(const Part& part, int64_t at, int64_t most) const {
  const int64_t count = std::min(most, part.blocks - at), first = part.first + at;
  return {list_.data() + first, count, std::ssize(list_) - first - count};
}

void CellScan::scan_alone(const Part& part, BestScores& best) {
  Waiting& waiting = waiting_[static_cast<size_t>(part.asker)];
  for (int64_t at = 0; at < part.blocks;) {
    if (waiting.listed == kListed) offer(part.asker, best);
    const BlockList blocks = piece(part, at, kListed - waiting.listed);
    CellQuery query = asker(part.asker, blocks);
    query.bases = bases_.data() + part.first + at;
    query.base_step = 1;
    score(blocks, &query, 1);
    at += blocks.count;
  }
}

void CellScan::scan_together(const Part& part, BestScores* best) {
  CellQuery together[kAskers];
  for (int64_t at = 0; at < part.blocks; at += kPiece) {
    const BlockList blocks = piece(part, at, kPiece);
    for (int64_t first = 0; first < part.askers; first += kAskers) {
      const int64_t count = std::min(kAskers, part.askers - first);
      const Visit* visits = sorted_.data() + part.asker + first;
      for (int64_t i = 0; i < count; ++i) {
        const int32_t query = visits[i].query;
        if (waiting_[static_cast<size_t>(query)].listed + blocks.count > kListed) {
          offer(query, best[query]);
        }
        together[i] = asker(query, blocks);
        together[i].bases = &visits[i].score;
        together[i].base_step = 0;
      }
      score(blocks, together, count);
    }
  }
}

// A query with room for its scores of further blocks, which there has to be.
CellQuery CellScan::asker(int64_t query, const BlockList& blocks) {
  Waiting& waiting = waiting_[static_cast<size_t>(query)];
  CellQuery asker = queries_[query];
  asker.scores = waiting.scores.data() + waiting.listed * kBlockRows;
  std::copy_n(blocks.blocks, blocks.count, waiting.list.data() + waiting.listed);
  waiting.listed += blocks.count;
  return asker;
}

void CellScan::score(const BlockList& blocks, const CellQuery* queries, int64_t count) const {
  if (index_->coded()) return code_kernel(isa_)(index_->codes(), blocks, queries, count);
  cell_kernel(isa_)(index_->rows(), blocks, queries, count);
}

void CellScan::offer(int64_t query, BestScores& best) {
  Waiting& waiting = waiting_[static_cast<size_t>(query)];
  if (waiting.listed == 0) return;
  best.add(waiting.scores.data(), waiting.list.data(), waiting.listed);
  if (sums_ != nullptr) {
    accumulate(sums_[query], sum_piece(waiting.scores.data(), waiting.listed * kBlockRows, isa_));
  }
  waiting.listed = 0;
}

}  // namespace qcompile

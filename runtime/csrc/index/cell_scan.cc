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

void CellScan::start(const CellIndex& index, const EncodedQueries& queries, Isa isa) {
  index_ = &index;
  queries_ = queries;
  kernel_ = cell_kernel(isa);
  isa_ = isa;
  visits_.clear();
  if (std::ssize(waiting_) < queries.count) waiting_.resize(static_cast<size_t>(queries.count));
}

void CellScan::ask(int64_t query, std::span<const uint64_t> cells) {
  for (uint64_t key : cells) {
    visits_.push_back({static_cast<int32_t>(place_of(key)), static_cast<int32_t>(query)});
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
  for (int64_t query = 0; query < queries_.count; ++query) offer(query, best[query]);
  visits_.clear();
}

// Cells that several queries ask for, in the order of memory; then those of one query alone, query
// by query, so that one list has them all.
void CellScan::divide() {
  list_.clear();
  parts_.clear();
  if (queries_.count == 1) {
    // In the order of memory: of many cells some lie side by side.
    std::sort(visits_.begin(), visits_.end(),
              [](const Visit& a, const Visit& b) { return a.cell < b.cell; });
    return list_alone(visits_);
  }
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
    list_cell(cell);
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
    for (; end < visits.size() && visits[end].query == query; ++end) list_cell(visits[end].cell);
    part.blocks = std::ssize(list_) - part.first;
    parts_.push_back(part);
  }
}

void CellScan::list_cell(int64_t cell) {
  for (int32_t b = index_->first_block(cell); b < index_->first_block(cell + 1); ++b) {
    list_.push_back(b);
  }
}

BlockList CellScan::piece(const Part& part, int64_t at, int64_t most) const {
  const int64_t count = std::min(most, part.blocks - at), first = part.first + at;
  return {list_.data() + first, count, std::ssize(list_) - first - count};
}

EncodedQueries CellScan::one(int64_t query) const {
  return {queries_.values + query * queries_.stride, 0, queries_.scales + query, 1};
}

void CellScan::scan_alone(const Part& part, BestScores& best) {
  const int64_t query = part.asker;
  Waiting& waiting = waiting_[static_cast<size_t>(query)];
  for (int64_t at = 0; at < part.blocks;) {
    if (std::ssize(waiting.list) == kListed) offer(query, best);
    const BlockList blocks = piece(part, at, kListed - std::ssize(waiting.list));
    kernel_(index_->rows(), blocks, one(query), add(waiting, blocks));
    at += blocks.count;
  }
}

void CellScan::scan_together(const Part& part, BestScores* best) {
  for (int64_t at = 0; at < part.blocks; at += kPiece) {
    const BlockList blocks = piece(part, at, kPiece);
    for (int64_t first = 0; first < part.askers; first += kAskers) {
      const int64_t count = std::min(kAskers, part.askers - first);
      const Visit* askers = sorted_.data() + part.asker + first;
      const EncodedQueries together = gather(askers, count);
      kernel_(index_->rows(), blocks, together, scores_.data());
      for (int64_t i = 0; i < count; ++i) {
        const int32_t query = askers[i].query;
        Waiting& waiting = waiting_[static_cast<size_t>(query)];
        if (std::ssize(waiting.list) + blocks.count > kListed) offer(query, best[query]);
        std::copy_n(scores_.data() + i * blocks.count * kBlockRows, blocks.count * kBlockRows,
                    add(waiting, blocks));
      }
    }
  }
}

EncodedQueries CellScan::gather(const Visit* visits, int64_t count) {
  gathered_.resize(static_cast<size_t>(kAskers * queries_.stride));
  scales_.resize(kAskers);
  scores_.resize(kAskers * kPiece * kBlockRows);
  for (int64_t i = 0; i < count; ++i) {
    std::copy_n(queries_.values + visits[i].query * queries_.stride, queries_.stride,
                gathered_.data() + i * queries_.stride);
    scales_[static_cast<size_t>(i)] = queries_.scales[visits[i].query];
  }
  return {gathered_.data(), queries_.stride, scales_.data(), count};
}

// Room for the scores of further blocks, which there has to be.
float* CellScan::add(Waiting& waiting, const BlockList& blocks) {
  waiting.scores.resize(kListed * kBlockRows);
  float* room = waiting.scores.data() + std::ssize(waiting.list) * kBlockRows;
  waiting.list.insert(waiting.list.end(), blocks.blocks, blocks.blocks + blocks.count);
  return room;
}

void CellScan::offer(int64_t query, BestScores& best) {
  Waiting& waiting = waiting_[static_cast<size_t>(query)];
  if (!waiting.list.empty()) {
    const int64_t listed = std::ssize(waiting.list);
    best.add(waiting.scores.data(), waiting.list.data(), listed);
    if (sums_ != nullptr) {
      accumulate(sums_[query], sum_piece(waiting.scores.data(), listed * kBlockRows, isa_));
    }
  }
  waiting.list.clear();
}

}  // namespace qcompile

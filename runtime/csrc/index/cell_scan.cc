#include "index/cell_scan.h"

#include <algorithm>

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
  visits_.clear();
  if (std::ssize(waiting_) < queries.count) waiting_.resize(static_cast<size_t>(queries.count));
}

void CellScan::ask(int64_t query, std::span<const uint64_t> cells) {
  for (uint64_t key : cells) {
    visits_.push_back(uint64_t{place_of(key)} << 32 | static_cast<uint32_t>(query));
  }
}

void CellScan::run(BestScores* best) {
  divide();
  for (const Part& part : parts_) {
    if (part.askers > 1) scan_together(part, best);
  }
  for (const Part& part : parts_) {
    if (part.askers == 1) scan_alone(part, best[askers_[static_cast<size_t>(part.asker)]]);
  }
  for (int64_t query = 0; query < queries_.count; ++query) offer(query, best[query]);
  visits_.clear();
}

// Cells that several queries ask for, in the order of memory; then those of one query alone, query
// by query, so that one list has them all.
void CellScan::divide() {
  askers_.clear();
  list_.clear();
  parts_.clear();
  if (queries_.count > 1) std::sort(visits_.begin(), visits_.end());
  auto rest = visits_.begin();
  for (auto visit = visits_.begin(); visit != visits_.end();) {
    const uint64_t cell = *visit >> 32;
    auto end = visit;
    while (end != visits_.end() && *end >> 32 == cell) ++end;
    if (end - visit == 1) {
      *rest++ = *visit << 32 | cell;
    } else {
      Part part{std::ssize(list_), 0, std::ssize(askers_), end - visit};
      for (auto each = visit; each != end; ++each) {
        askers_.push_back(static_cast<int32_t>(*each & 0xFFFFFFFF));
      }
      list_cell(static_cast<int64_t>(cell));
      part.blocks = std::ssize(list_) - part.first;
      parts_.push_back(part);
    }
    visit = end;
  }
  if (queries_.count > 1) std::sort(visits_.begin(), rest);
  for (auto visit = visits_.begin(); visit != rest;) {
    const uint64_t query = *visit >> 32;
    Part part{std::ssize(list_), 0, std::ssize(askers_), 1};
    askers_.push_back(static_cast<int32_t>(query));
    for (; visit != rest && *visit >> 32 == query; ++visit) {
      list_cell(static_cast<int64_t>(*visit & 0xFFFFFFFF));
    }
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
  const int64_t query = askers_[static_cast<size_t>(part.asker)];
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
      const int32_t* askers = askers_.data() + part.asker + first;
      const EncodedQueries together = gather(askers, count);
      kernel_(index_->rows(), blocks, together, scores_.data());
      for (int64_t i = 0; i < count; ++i) {
        Waiting& waiting = waiting_[static_cast<size_t>(askers[i])];
        if (std::ssize(waiting.list) + blocks.count > kListed) offer(askers[i], best[askers[i]]);
        std::copy_n(scores_.data() + i * blocks.count * kBlockRows, blocks.count * kBlockRows,
                    add(waiting, blocks));
      }
    }
  }
}

EncodedQueries CellScan::gather(const int32_t* queries, int64_t count) {
  gathered_.resize(static_cast<size_t>(kAskers * queries_.stride));
  scales_.resize(kAskers);
  scores_.resize(kAskers * kPiece * kBlockRows);
  for (int64_t i = 0; i < count; ++i) {
    std::copy_n(queries_.values + queries[i] * queries_.stride, queries_.stride,
                gathered_.data() + i * queries_.stride);
    scales_[static_cast<size_t>(i)] = queries_.scales[queries[i]];
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
    best.add(waiting.scores.data(), waiting.list.data(), std::ssize(waiting.list));
  }
  waiting.list.clear();
}

}  // namespace qcompile

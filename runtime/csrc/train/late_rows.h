// Optimisers that leave idle rows alone and let them catch up, in closed form, when needed.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <numeric>
#include <span>
#include <stdexcept>
#include <utility>
#include <vector>

#include "core/parallel.h"
#include "train/row_optimizer.h"

namespace qcompile {

// Rows to be worked on by one thread, `missed[i]` steps behind.
struct RowBlock {
  const uint32_t* ids;
  const int32_t* missed;
  int64_t count;
  uint64_t steps;  // taken by the matrix, the present one included; selects random numbers
};

// What becomes of the steps in which a row gets no gradient.
enum class IdleRows {
  kCatchUp,  // it follows them later
  kRest,     // nothing, its averages included
};

// The steps that a matrix has taken and how many of them each row has followed. A Rule is a matrix
// with the rates of the present step, and has
//   Rates, IdleTable: types; Rates must compare mergeable(a, b): whether one catch-up may cover
//     both steps;
//   static shared_ptr<const IdleTable> idle_table(span<const Rates> history, int64_t before): how
//     to catch up with any number of the latest steps of the history, before which `before` were
//     taken;
//   idle(block, table): lets rows catch up;
//   step(block, table, gradients): the same, and one step with gradients [count, depth];
//   rows(), depth(), rates().
template <typename Rule>
class LateRows {
 public:
  using Rates = typename Rule::Rates;
  using IdleTable = typename Rule::IdleTable;

  // After so many steps all rows catch up, which bounds the history that is kept.
  static constexpr int64_t kFlushAfter = 1024;

  // `steps` have been taken before, and no row is behind.
  LateRows(int64_t rows, int64_t steps, IdleRows idle = IdleRows::kCatchUp)
      : idle_(idle), base_(steps), followed_(rows) {}

  int64_t rows() const { return static_cast<int64_t>(followed_.size()); }
  int64_t steps() const { return base_ + length(); }
  // The latest steps, which some rows may not have followed.
  int64_t pending() const { return length(); }

  // Until then, one step may be taken.
  void finish_step() { stepped_ = false; }

  void catch_up(const Rule& rule, std::span<const uint32_t> ids, const Executor& executor) {
    if (history_.empty()) return;
    const IdleTable& table = *idle_table();
    for_blocks(rule.depth(), static_cast<int64_t>(ids.size()), executor, [&](Range range) {
      catch_up_block(rule, table, ids.subspan(range.begin, range.end - range.begin));
    });
  }

  void step(const Rule& rule, std::span<const uint32_t> ids, RowOptimizer::Gradients gradients,
            const Executor& executor) {
    if (stepped_) {
      throw std::logic_error(
          "this parameter has taken its step already: with step_in_backward() there is one "
          "backward, through one forward of each layer, before each optimizer.step(); leave it out "
          "to accumulate gradients");
    }
    const bool full = static_cast<int64_t>(history_.size()) >= kFlushAfter;
    if (full || (!history_.empty() && !mergeable(rule.rates(), history_.back()))) {
      flush(rule, executor);
    }
    const std::shared_ptr<const IdleTable> table = idle_table();
    const int32_t before = length();
    if (idle_ == IdleRows::kCatchUp) {
      history_.push_back(rule.rates());
    } else {
      ++base_;
    }
    const int32_t after = length();
    stepped_ = true;
    if (after != before) table_length_ = -1;
    const int64_t depth = rule.depth();
    for_blocks(depth, static_cast<int64_t>(ids.size()), executor, [&](Range range) {
      const int64_t count = range.end - range.begin;
      const uint32_t* block = ids.data() + range.begin;
      const auto rows = std::make_unique_for_overwrite<float[]>(count * depth);
      gradients(range.begin, range.end, rows.get());
      std::vector<int32_t> missed(count);
      for (int64_t i = 0; i < count; ++i) missed[i] = before - followed_[block[i]];
      rule.step({block, missed.data(), count, key()}, *table, rows.get());
      for (int64_t i = 0; i < count; ++i) followed_[block[i]] = after;
    });
  }

  void flush(const Rule& rule, const Executor& executor) {
    if (history_.empty()) return;
    const IdleTable& table = *idle_table();
    for_blocks(rule.depth(), rows(), executor, [&](Range range) {
      std::vector<uint32_t> ids(range.end - range.begin);
      std::iota(ids.begin(), ids.end(), static_cast<uint32_t>(range.begin));
      catch_up_block(rule, table, ids);
    });
    base_ += length();
    history_.clear();
    std::fill(followed_.begin(), followed_.end(), 0);
    table_length_ = -1;
  }

 private:
  struct Range {
    int64_t begin, end;
  };
  static constexpr int64_t kBlockValues = 8192;  // gradients that stay in the first-level cache

  int32_t length() const { return static_cast<int32_t>(history_.size()); }
  uint64_t key() const { return static_cast<uint64_t>(steps()); }

  void catch_up_block(const Rule& rule, const IdleTable& table, std::span<const uint32_t> ids) {
    std::vector<uint32_t> late;
    std::vector<int32_t> missed;
    for (uint32_t id : ids) {
      if (followed_[id] == length()) continue;
      late.push_back(id);
      missed.push_back(length() - followed_[id]);
    }
    rule.idle({late.data(), missed.data(), static_cast<int64_t>(late.size()), key()}, table);
    for (uint32_t id : late) followed_[id] = length();
  }

  // Lives until the history changes.
  const std::shared_ptr<const IdleTable>& idle_table() {
    if (table_length_ != length()) table_ = Rule::idle_table(history_, base_);
    table_length_ = length();
    return table_;
  }

  static void for_blocks(int64_t depth, int64_t size, const Executor& executor,
                         FunctionRef<void(Range)> body) {
    const int64_t most = std::max<int64_t>(16, kBlockValues / std::max<int64_t>(depth, 1));
    parallel_for(executor, size, most, [&](int64_t begin, int64_t end) {
      for (int64_t at = begin; at < end; at += most) body({at, std::min(at + most, end)});
    });
  }

  IdleRows idle_;
  int64_t base_;                   // steps before the history
  std::vector<Rates> history_;     // of the steps since then
  std::vector<int32_t> followed_;  // [rows] length of the history that a row has followed
  std::shared_ptr<const IdleTable> table_;
  int32_t table_length_ = -1;  // of the history that the table is for
  bool stepped_ = false;
};

// A rule with its rows, as gradient producers see it.
template <typename Rule>
class BoundRows : public RowOptimizer {
 public:
  BoundRows(LateRows<Rule>& late, Rule rule) : late_(late), rule_(std::move(rule)) {}

  int64_t rows() const override { return late_.rows(); }
  int64_t depth() const override { return rule_.depth(); }
  void catch_up(std::span<const uint32_t> ids, const Executor& executor) override {
    late_.catch_up(rule_, ids, executor);
  }
  void step(std::span<const uint32_t> ids, Gradients gradients, const Executor& executor) override {
    late_.step(rule_, ids, gradients, executor);
  }
  void flush(const Executor& executor) override { late_.flush(rule_, executor); }

 private:
  LateRows<Rule>& late_;
  Rule rule_;
};

}  // namespace qcompile

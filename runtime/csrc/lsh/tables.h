// L hash tables over the rows of a matrix, for finding rows near a query.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "core/parallel.h"
#include "lsh/family.h"

namespace qcompile {

// What a full bucket does with one more row: drop its oldest, or keep a uniform sample of all.
enum class Policy { kFifo, kReservoir };

struct TableOptions {
  FamilyName family = FamilyName::kDwta;
  int64_t dimension = 0;
  int64_t rows = 0;
  int64_t tables = 0;  // L
  int64_t hashes = 0;  // K
  int64_t bucket = 0;  // rows that one bucket keeps
  Policy policy = Policy::kReservoir;
  uint64_t seed = 0;
};

// Keys pack K codes. A key of more bits than a table is worth is folded by a hash, so that the
// buckets of a table are at most about four times its rows, and never more than 2^kMaxKeyBits.
class LshTables {
 public:
  static constexpr int kMaxKeyBits = 20;
  static constexpr int64_t kMaxTables = 1024;
  static constexpr int64_t kMaxRows = int64_t{1} << 31;
  static constexpr int64_t kMaxDimension = int64_t{1} << 20;

  // Throws std::invalid_argument for options out of range.
  explicit LshTables(const TableOptions& options);

  const TableOptions& options() const { return options_; }
  int key_bits() const { return key_bits_; }

  // Keys of vectors [count, dimension], as [tables, count].
  std::vector<uint32_t> keys(const float* vectors, int64_t count, const Executor& executor,
                             Isa isa = best_isa()) const;

  // Puts every row of matrix [rows, dimension] into one bucket of each table, forgetting what was
  // there. `generation` picks the random numbers of the reservoir.
  void build(const float* matrix, uint64_t generation, const Executor& executor);

  bool built() const { return !tables_.empty(); }

  // The rows in one bucket. Requires built(), table < tables, key < 2^key_bits().
  std::span<const uint32_t> bucket(int64_t table, uint32_t key) const {
    const Table& t = tables_[table];
    return {t.rows.data() + t.offsets[key], t.offsets[key + 1] - t.offsets[key]};
  }

 private:
  struct Table {
    std::vector<uint32_t> offsets;  // [2^key_bits + 1]
    std::vector<uint32_t> rows;
  };

  uint32_t fold(uint64_t key) const;
  void fill(Table& table, std::span<const uint32_t> keys, uint64_t stream) const;

  TableOptions options_;
  int key_bits_ = 0;
  bool folds_ = false;
  std::shared_ptr<const HashFamily> family_;
  std::vector<Table> tables_;
};

}  // namespace qcompile

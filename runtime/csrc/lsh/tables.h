// L hash tables over the rows of a matrix, for finding rows near a query.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "core/parallel.h"
#include "lsh/buckets.h"
#include "lsh/fingerprints.h"
#include "lsh/key_matrix.h"
#include "lsh/lookups.h"
#include "lsh/row_hasher.h"

namespace qcompile {

struct TableOptions {
  FamilyName family = FamilyName::kDwta;
  int64_t dimension = 0;
  int64_t rows = 0;
  int64_t tables = 0;  // L
  int64_t hashes = 0;  // K
  int64_t bucket = 0;  // rows that one bucket keeps
  Policy policy = Policy::kReservoir;
  uint64_t seed = 0;
  // Whether keys are kept from one build to the next, which then hashes changed rows only.
  bool incremental = false;
};

// What distinguishes one build from another over the same rows.
struct BuildNumbers {
  uint64_t generation = 0;  // picks the random numbers of the reservoirs
  uint64_t draw = 0;        // picks the hash functions
};

struct Occupancy {
  std::vector<int64_t> buckets_by_rows;  // [most + 1] how many buckets have that many rows
  int64_t dropped = 0;                   // rows that found a bucket full, over all tables
  int64_t table_bytes = 0;
  int64_t key_bytes = 0;  // keys and fingerprints that incremental or sliced builds keep
  int64_t lookup_bytes = 0;
};

class LshTables {
 public:
  static constexpr int64_t kMaxTables = 1024;
  static constexpr int64_t kMaxRows = int64_t{1} << 31;
  static constexpr int64_t kMaxDimension = int64_t{1} << 20;
  static constexpr int64_t kMaxSlices = int64_t{1} << 20;

  // Throws std::invalid_argument for options out of range.
  explicit LshTables(const TableOptions& options);

  const TableOptions& options() const { return options_; }
  // The seed of the hash functions of the present tables.
  uint64_t hash_seed() const { return seed_of(front_.draw); }
  int key_bits() const { return front_.hasher->key_bits(); }

  // Keys of vectors [count, dimension], as [tables, count].
  std::vector<uint32_t> keys(const float* vectors, int64_t count, const Executor& executor,
                             Isa isa = best_isa()) const;

  // Puts every row of matrix [rows, dimension] into one bucket of each table, forgetting what was
  // there and what begin() has begun.
  void build(const RowsView& rows, const BuildNumbers& numbers, const Executor& executor);
  void build(const float* matrix, uint64_t generation, const Executor& executor) {
    build({matrix, Storage::kFloat32, options_.dimension}, {.generation = generation}, executor);
  }

  // The same in `slices` steps of about equal work, one by each advance(), into tables of their
  // own, which take the place of the present ones in the last step. Each row is hashed once, as it
  // is in that step. The steps do not run beside anything: training keeps every processor busy
  // anyway, and a thread of its own would see rows while they change.
  void begin(const BuildNumbers& numbers, int64_t slices);
  // Returns whether that was the last step; requires building().
  bool advance(const RowsView& rows, const Executor& executor);
  bool building() const { return slices_ > 0; }

  bool built() const { return !front_.tables.empty() && front_.tables[0].filled(); }

  // Rows whose keys were computed by the build that was last begun.
  int64_t hashed_rows() const { return hashed_rows_; }

  // Requires built(), table < tables, key < 2^key_bits().
  const BucketTable& table(int64_t table) const { return front_.tables[table]; }
  std::span<const uint32_t> bucket(int64_t table, uint32_t key) const {
    return front_.tables[table].bucket(key);
  }

  Occupancy occupancy() const;
  Lookups& lookups() const { return *lookups_; }

 private:
  struct Set {
    uint64_t draw = 0;
    std::shared_ptr<const RowHasher> hasher;
    std::vector<BucketTable> tables;
  };

  uint64_t seed_of(uint64_t draw) const;
  std::shared_ptr<const RowHasher> make_hasher(uint64_t draw) const;
  void keep_keys(uint64_t draw);
  int64_t hash(const Set& set, const RowsView& rows, int64_t begin, int64_t end,
               const Executor& executor);
  void build_in_groups(const RowsView& rows, const BuildNumbers& numbers, const Executor& executor);
  // Fills tables begin … end; `keys` has those of tables from first_key on.
  void fill(Set& set, int64_t begin, int64_t end, const KeyMatrix& keys, int64_t first_key,
            const BuildNumbers& numbers, const Executor& executor) const;
  BucketRules rules(const BuildNumbers& numbers, int64_t table) const;

  TableOptions options_;
  Set front_, back_;
  KeyMatrix keys_;             // of an incremental or sliced build
  Fingerprints fingerprints_;  // of the rows whose keys are in keys_, if incremental
  uint64_t keys_draw_ = 0;
  int64_t hashed_rows_ = 0;
  int64_t slices_ = 0, slice_ = 0;
  BuildNumbers numbers_;  // of the sliced build
  std::unique_ptr<Lookups> lookups_;
};

}  // namespace qcompile

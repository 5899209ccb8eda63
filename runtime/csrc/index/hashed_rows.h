// An output layer with the hash tables that it was trained with, or others over its rows.
// runtime/reference/hashed_rows.py is its ground truth.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "index/head.h"
#include "lsh/row_hasher.h"
#include "lsh/tables.h"

namespace qcompile {

// The constants of a file, of which nothing has been checked but that they exist.
struct HashedArrays {
  FamilyName family = FamilyName::kDwta;
  int64_t tables = 0;
  int64_t hashes = 0;
  uint64_t seed = 0;
  const uint32_t* offsets = nullptr;  // where each bucket begins, table after table, and the end
  int64_t offset_count = 0;
  const int32_t* row_ids = nullptr;  // rows, bucket after bucket
  int64_t row_id_count = 0;
};

// Immutable once made, so any number of threads may use one.
class HashedRows {
 public:
  // Keeps a reference to `head`. Throws std::invalid_argument, naming the array and the place in
  // it, unless each table has a row at most once.
  HashedRows(const Head& head, const HashedArrays& arrays, const Executor& executor);

  const Head& head() const { return head_; }
  const RowHasher& hasher() const { return hasher_; }
  int64_t tables() const { return arrays_.tables; }
  int64_t hashes() const { return arrays_.hashes; }
  int64_t functions() const { return tables() * hashes(); }

  std::span<const int32_t> bucket(int64_t table, uint32_t key) const {
    const uint32_t* place = offsets_of(table) + key;
    return {arrays_.row_ids + place[0], place[1] - place[0]};
  }
  // Asks for where bucket() will look, and later for what it will find.
  void prefetch_place(int64_t table, uint32_t key) const {
    __builtin_prefetch(offsets_of(table) + key);
  }
  void prefetch_rows(int64_t table, uint32_t key) const {
    constexpr size_t kLine = 64 / sizeof(int32_t);
    const std::span<const int32_t> rows = bucket(table, key);
    for (size_t at = 0; at < rows.size(); at += kLine) __builtin_prefetch(rows.data() + at);
  }

 private:
  const uint32_t* offsets_of(int64_t table) const {
    return arrays_.offsets + (table << hasher_.key_bits());
  }
  void check_table(int64_t table) const;

  const Head& head_;
  HashedArrays arrays_;
  RowHasher hasher_;
};

struct HashedSearch {
  static constexpr int64_t kMostProbes = 1024;

  int64_t k = 1;
  int64_t probes = 1;   // buckets of each table that are read; see lsh/multi_probe.h
  int64_t rescore = 1;  // rows that are scored, those that collide most often; k at least
};

// The k largest scores, for each of `count` hidden vectors [count, depth], of the rows that collide
// with it most often, the first seen of equals: first the query's own bucket in each table, then
// the next one of each. Into scores and ids [count, k], ordered as by linear_top_k. A vector with
// NaN or infinity, or one with fewer than k collisions, gets what linear_top_k finds. The result
// does not depend on the instruction set, the number of threads or the other vectors. Throws
// std::invalid_argument unless 1 <= k <= rows and probes <= kMostProbes.
void hashed_top_k(const HashedRows& index, const HashedSearch& search, const float* hidden,
                  int64_t count, float* scores, int64_t* ids, const Executor& executor,
                  Isa isa = best_matrix_isa());

// The buckets of built tables as arrays of HashedArrays. Throws std::invalid_argument if they have
// 2^32 entries or more.
struct TableArrays {
  std::vector<uint32_t> offsets;
  std::vector<int32_t> row_ids;
};
TableArrays to_arrays(const LshTables& tables);

}  // namespace qcompile

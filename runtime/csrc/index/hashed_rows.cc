#include "index/hashed_rows.h"

#include <limits>
#include <stdexcept>
#include <string>

namespace qcompile {
namespace {

// Coordinates that all functions of an index may read together: 65,536 functions of 1,024 each.
constexpr int64_t kMostCoordinates = int64_t{1} << 26;

[[noreturn]] void refuse(const std::string& what, const std::string& found,
                         const std::string& expected) {
  throw std::invalid_argument(what + " is " + found + ", expected " + expected);
}

void check_range(const char* attribute, int64_t value, int64_t most) {
  if (value >= 1 && value <= most) return;
  refuse("attribute " + std::string(attribute), std::to_string(value),
         "1 to " + std::to_string(most));
}

// Nothing is allocated before the sizes that a file claims have been checked.
HashOptions checked_options(const Dense& dense, const HashedArrays& arrays) {
  check_range("tables", arrays.tables, LshTables::kMaxTables);
  check_range("hashes", arrays.hashes, 63 / code_bits(arrays.family));
  if (dense.depth > kMostCoordinates / (arrays.tables * arrays.hashes)) {
    refuse("attribute tables", std::to_string(arrays.tables),
           "fewer for " + std::to_string(arrays.hashes) + " hashes of " +
               std::to_string(dense.depth) + " activations");
  }
  return {.family = arrays.family,
          .dimension = dense.depth,
          .rows = dense.rows,
          .tables = arrays.tables,
          .hashes = arrays.hashes};
}

}  // namespace

HashedRows::HashedRows(const Head& head, const HashedArrays& arrays, const Executor& executor)
    : head_(head), arrays_(arrays), hasher_(checked_options(head.dense(), arrays), arrays.seed) {
  const int64_t buckets = arrays.tables << hasher_.key_bits();
  if (arrays.offset_count != buckets + 1) {
    refuse("input 'offsets'", "of length " + std::to_string(arrays.offset_count),
           std::to_string(buckets + 1) + " for " + std::to_string(arrays.tables) + " tables of 2^" +
               std::to_string(hasher_.key_bits()) + " buckets");
  }
  const auto entry = [](int64_t at) { return "input 'offsets': [" + std::to_string(at) + "]"; };
  const uint32_t* offsets = arrays.offsets;
  if (offsets[0] != 0) refuse(entry(0), std::to_string(offsets[0]), "0");
  for (int64_t at = 1; at <= buckets; ++at) {
    if (offsets[at] >= offsets[at - 1] && offsets[at] <= arrays.row_id_count) continue;
    refuse(entry(at), std::to_string(offsets[at]),
           std::to_string(offsets[at - 1]) + " to the " + std::to_string(arrays.row_id_count) +
               " entries of input 'row_ids'");
  }
  if (offsets[buckets] != arrays.row_id_count) {
    refuse(entry(buckets), std::to_string(offsets[buckets]),
           "the " + std::to_string(arrays.row_id_count) + " entries of input 'row_ids'");
  }
  parallel_for(executor, arrays.tables, 1, [&](int64_t begin, int64_t end) {
    for (int64_t table = begin; table < end; ++table) check_table(table);
  });
}

void HashedRows::check_table(int64_t table) const {
  const uint32_t* offsets = offsets_of(table);
  const int64_t rows = head_.rows();
  const auto entry = [](int64_t at) { return "input 'row_ids': [" + std::to_string(at) + "]"; };
  std::vector<bool> seen(static_cast<size_t>(rows));
  for (int64_t at = offsets[0]; at < offsets[int64_t{1} << hasher_.key_bits()]; ++at) {
    const int64_t row = arrays_.row_ids[at];
    if (row < 0 || row >= rows) {
      refuse(entry(at), std::to_string(row), "0 to " + std::to_string(rows - 1));
    }
    if (seen[static_cast<size_t>(row)]) {
      refuse(entry(at), std::to_string(row), "each row once in a table");
    }
    seen[static_cast<size_t>(row)] = true;
  }
}

TableArrays to_arrays(const LshTables& tables) {
  TableArrays arrays;
  int64_t entries = 0;
  for (int64_t t = 0; t < tables.options().tables; ++t) entries += tables.table(t).rows();
  if (entries > std::numeric_limits<uint32_t>::max()) {
    throw std::invalid_argument("hash tables of " + std::to_string(entries) +
                                " entries, expected fewer than 2^32: take fewer tables or smaller "
                                "buckets");
  }
  arrays.row_ids.reserve(static_cast<size_t>(entries));
  for (int64_t t = 0; t < tables.options().tables; ++t) {
    const BucketTable& table = tables.table(t);
    for (int64_t key = 0; key < table.buckets(); ++key) {
      arrays.offsets.push_back(static_cast<uint32_t>(arrays.row_ids.size()));
      for (uint32_t row : table.bucket(static_cast<uint32_t>(key))) {
        arrays.row_ids.push_back(static_cast<int32_t>(row));
      }
    }
  }
  arrays.offsets.push_back(static_cast<uint32_t>(arrays.row_ids.size()));
  return arrays;
}

}  // namespace qcompile

// Hash tables: equal for every instruction set and executor, and full of rows that exist.
#include <algorithm>
#include <stdexcept>

#include "lsh/tables.h"
#include "tests/index_testing.h"

namespace qcompile {
namespace {

// Normal values, a third of them zero, so that some DWTA bins are empty.
std::vector<float> sparse_values(int64_t count, unsigned seed) {
  std::vector<float> values = normal_values(count, seed);
  for (size_t i = seed % 3; i < values.size(); i += 3) values[i] = 0;
  return values;
}

TableOptions options_for(FamilyName family, Policy policy, int64_t dimension, int64_t rows) {
  return {.family = family,
          .dimension = dimension,
          .rows = rows,
          .tables = 5,
          .hashes = 2,
          .bucket = 4,
          .policy = policy,
          .seed = 11};
}

bool same_buckets(const LshTables& a, const LshTables& b) {
  for (int64_t table = 0; table < a.options().tables; ++table) {
    for (uint32_t key = 0; key >> a.key_bits() == 0; ++key) {
      if (!std::ranges::equal(a.bucket(table, key), b.bucket(table, key))) return false;
    }
  }
  return true;
}

void test_keys_are_the_same_everywhere(FamilyName family, int64_t dimension, int64_t count) {
  const LshTables tables(options_for(family, Policy::kFifo, dimension, 30));
  const std::vector<float> vectors = sparse_values(count * dimension, 1);
  const auto expected = tables.keys(vectors.data(), count, SerialExecutor(), Isa::kScalar);
  for (uint32_t key : expected) EXPECT(key >> tables.key_bits() == 0);
  for (Isa isa : supported_isas()) {
    EXPECT(tables.keys(vectors.data(), count, SerialExecutor(), isa) == expected);
    EXPECT(tables.keys(vectors.data(), count, ThreadExecutor(3), isa) == expected);
  }
}

void test_buckets(FamilyName family, Policy policy, int64_t rows) {
  constexpr int64_t kDimension = 19;
  LshTables alone(options_for(family, policy, kDimension, rows));
  LshTables together(alone.options());
  const std::vector<float> matrix = sparse_values(rows * kDimension, 2);
  EXPECT(!alone.built());
  for (uint64_t generation : {0, 1}) {  // the second build replaces the first
    alone.build(matrix.data(), generation, SerialExecutor());
    together.build(matrix.data(), generation, ThreadExecutor(3));
    EXPECT(same_buckets(alone, together));
  }
  int64_t kept = 0;
  for (uint32_t key = 0; key >> alone.key_bits() == 0; ++key) {
    const auto bucket = alone.bucket(0, key);
    EXPECT(bucket.size() <= 4);
    for (uint32_t row : bucket) EXPECT(row < rows);
    kept += static_cast<int64_t>(bucket.size());
  }
  EXPECT(kept >= 1 && kept <= rows);
}

void test_options_out_of_range_throw() {
  for (int64_t TableOptions::* field :
       {&TableOptions::dimension, &TableOptions::rows, &TableOptions::tables, &TableOptions::hashes,
        &TableOptions::bucket}) {
    for (int64_t value : {int64_t{-1}, int64_t{0}, int64_t{1} << 40}) {
      TableOptions options = options_for(FamilyName::kDwta, Policy::kFifo, 8, 9);
      options.*field = value;
      bool refused = false;
      try {
        LshTables tables(options);
      } catch (const std::invalid_argument&) {
        refused = true;
      }
      EXPECT(refused);
    }
  }
}

}  // namespace
}  // namespace qcompile

int main() {
  using namespace qcompile;
  for (FamilyName family :
       {FamilyName::kSimHash, FamilyName::kWta, FamilyName::kDwta, FamilyName::kDoph}) {
    for (int64_t dimension : {1, 7, 8, 130}) {
      for (int64_t count : {0, 1, 16, 37}) {
        test_keys_are_the_same_everywhere(family, dimension, count);
      }
    }
    for (Policy policy : {Policy::kFifo, Policy::kReservoir}) {
      for (int64_t rows : {1, 15, 300}) test_buckets(family, policy, rows);
    }
  }
  test_options_out_of_range_throw();
}

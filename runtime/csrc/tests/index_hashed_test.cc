// Search in hash tables on threads, and tables from hostile files; answers are tested from Python.
#include <algorithm>

#include "index/hashed_rows.h"
#include "tests/index_testing.h"
#include "tests/mutation.h"

namespace qcompile {
namespace {

struct HashedLayer {
  HashedLayer(int64_t rows, int64_t depth, FamilyName family)
      : weight(normal_values(rows * depth, 1)),
        bias(normal_values(rows, 2)),
        dense{weight.data(), bias.data(), rows, depth},
        head(dense),
        how{.family = family, .tables = 6, .hashes = 3} {
    LshTables tables({.family = family,
                      .dimension = depth,
                      .rows = rows,
                      .tables = how.tables,
                      .hashes = how.hashes,
                      .bucket = 30});
    tables.build(weight.data(), 0, SerialExecutor());
    built = to_arrays(tables);
  }

  HashedArrays arrays() const {
    HashedArrays arrays = how;
    arrays.offsets = built.offsets.data();
    arrays.offset_count = static_cast<int64_t>(built.offsets.size());
    arrays.row_ids = built.row_ids.data();
    arrays.row_id_count = static_cast<int64_t>(built.row_ids.size());
    return arrays;
  }

  std::vector<float> weight, bias;
  Dense dense;
  Head head;
  HashedArrays how;
  TableArrays built;
};

struct Found {
  std::vector<float> scores;
  std::vector<int64_t> ids;
  bool operator==(const Found&) const = default;
};

Found search(const HashedRows& index, const HashedSearch& how, const std::vector<float>& hidden,
             const Executor& executor, Isa isa) {
  const auto count = static_cast<int64_t>(hidden.size()) / index.head().depth();
  Found found{std::vector<float>(static_cast<size_t>(count * how.k)),
              std::vector<int64_t>(static_cast<size_t>(count * how.k))};
  hashed_top_k(index, how, hidden.data(), count, found.scores.data(), found.ids.data(), executor,
               isa);
  return found;
}

constexpr FamilyName kFamilies[] = {FamilyName::kSimHash, FamilyName::kWta, FamilyName::kDwta,
                                    FamilyName::kDoph};

void test_same_on_any_number_of_threads() {
  for (FamilyName family : kFamilies) {
    const HashedLayer layer(1001, 30, family);
    const HashedRows index(layer.head, layer.arrays(), ThreadExecutor(2));
    const std::vector<float> hidden = normal_values(37 * 30, 5);
    const HashedSearch how{.k = 5, .probes = 3, .rescore = 30};
    const Found expected = search(index, how, hidden, SerialExecutor(), Isa::kScalar);
    for (Isa isa : supported_isas()) {
      EXPECT(search(index, how, hidden, ThreadExecutor(3), isa) == expected);
    }
    std::vector<std::thread> callers;
    for (int t = 0; t < 4; ++t) {
      callers.emplace_back([&] {
        EXPECT(search(index, how, hidden, SerialExecutor(), best_matrix_isa()) == expected);
      });
    }
    for (std::thread& caller : callers) caller.join();
  }
}

// Whatever a file holds, it is refused or it finds rows that exist.
void test_mutated_tables(int runs) {
  const HashedLayer layer(301, 13, FamilyName::kDwta);
  const std::vector<float> hidden = normal_values(3 * 13, 7);
  const std::vector<Isa> isas = supported_isas();
  std::mt19937 random(3);
  int refused = 0;
  for (int run = 0; run < runs; ++run) {
    TableArrays built = layer.built;
    HashedArrays arrays = layer.how;
    arrays.seed = random();
    for (unsigned i = 0; i <= random() % 2; ++i) {
      switch (random() % 8) {
        case 0:
          mutate(built.offsets, random);
          break;
        case 1:
          mutate(built.row_ids, random);
          break;
        case 2:
          built.row_ids.resize(random() % (2 * built.row_ids.size()) + 1);
          break;
        case 3:
          built.offsets.resize(random() % built.offsets.size() + 1);
          break;
        case 4:
          arrays.tables = static_cast<int64_t>(random()) - (int64_t{1} << 31);
          break;
        case 5:
          arrays.hashes = static_cast<int64_t>(random() % 80) - 5;
          break;
        case 6:
          arrays.family = kFamilies[random() % 4];
          break;
        default:
          break;
      }
    }
    arrays.offsets = built.offsets.data();
    arrays.offset_count = static_cast<int64_t>(built.offsets.size());
    arrays.row_ids = built.row_ids.data();
    arrays.row_id_count = static_cast<int64_t>(built.row_ids.size());
    try {
      const HashedRows index(layer.head, arrays, SerialExecutor());
      const HashedSearch how{.k = static_cast<int64_t>(1 + random() % 301),
                             .probes = static_cast<int64_t>(1 + random() % 40),
                             .rescore = static_cast<int64_t>(1 + random() % 400)};
      for (int64_t id :
           search(index, how, hidden, SerialExecutor(), isas[random() % isas.size()]).ids) {
        EXPECT(id >= 0 && id < 301);
      }
    } catch (const std::invalid_argument&) {
      ++refused;
    }
  }
  std::printf("%d mutated tables: %d refused, %d searched\n", runs, refused, runs - refused);
  EXPECT(refused > runs / 10 && refused < runs);
}

}  // namespace
}  // namespace qcompile

int main() {
  qcompile::test_same_on_any_number_of_threads();
  qcompile::test_mutated_tables(10'000);
}

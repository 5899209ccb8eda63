// Search in cells on threads, and indexes from hostile files; answers are tested from Python.
#include <algorithm>
#include <cmath>

#include "index/build_cells.h"
#include "index/cells.h"
#include "index/codes.h"
#include "tests/index_testing.h"
#include "tests/mutation.h"

namespace qcompile {
namespace {

struct CellLayer {
  // Rows are packed with 8 bits, coded with fewer.
  CellLayer(int64_t rows, int64_t depth, int64_t cells, int64_t bits = 8)
      : bits(bits),
        weight(normal_values(rows * depth, 1)),
        bias(normal_values(rows, 2)),
        dense{weight.data(), bias.data(), rows, depth},
        built(build_cells(dense, {.clusters = cells}, SerialExecutor(), [](double) {})) {
    if (bits < 8) take(code(SerialExecutor()));
  }

  CodedRows code(const Executor& executor) const {
    return code_rows(dense,
                     {built.blocks, built.cells, built.offsets.data(), built.row_ids.data(),
                      built.centroids.data(), built.centroid_scale.data()},
                     bits, executor);
  }

  void take(CodedRows rows) {
    built.packed.clear();
    codes = std::move(rows.codes);
    built.scale = std::move(rows.scale);
    built.error = std::move(rows.error);
  }

  CellArrays arrays() const {
    return {built.blocks,
            built.cells,
            bits == 8 ? built.packed.data() : nullptr,
            built.scale.data(),
            built.error.data(),
            built.offsets.data(),
            built.row_ids.data(),
            built.centroids.data(),
            built.centroid_scale.data(),
            built.cell_bias.data(),
            built.cell_spread.data(),
            std::ssize(built.group_bias),
            built.group_offsets.data(),
            built.group_centroids.data(),
            built.group_scale.data(),
            built.group_bias.data(),
            built.group_spread.data(),
            bits,
            bits == 8 ? nullptr : codes.data()};
  }

  int64_t bits;
  std::vector<float> weight, bias;
  Dense dense;
  BuiltCells built;
  std::vector<uint8_t> codes;
};

struct Found {
  std::vector<float> scores;
  std::vector<int64_t> ids;
  std::vector<float> log_sums;
  bool operator==(const Found&) const = default;
};

Found search(const CellIndex& index, const CellSearch& how, const std::vector<float>& hidden,
             const Executor& executor, Isa isa) {
  const auto count = static_cast<int64_t>(hidden.size()) / index.dense().depth;
  Found found{std::vector<float>(static_cast<size_t>(count * how.k)),
              std::vector<int64_t>(static_cast<size_t>(count * how.k)),
              std::vector<float>(static_cast<size_t>(how.sum ? count : 0))};
  cells_top_k(index, how, hidden.data(), count, found.scores.data(), found.ids.data(),
              found.log_sums.data(), executor, isa);
  return found;
}

void test_same_on_any_number_of_threads(int64_t bits) {
  const CellLayer layer(3001, 30, 200, bits);
  const BuiltCells again =
      build_cells(layer.dense, {.clusters = 200}, ThreadExecutor(3), [](double) {});
  EXPECT(again.row_ids == layer.built.row_ids);
  EXPECT(bits < 8 ? layer.code(ThreadExecutor(3)).codes == layer.codes
                  : again.packed == layer.built.packed);
  EXPECT(again.centroids == layer.built.centroids && again.cell_bias == layer.built.cell_bias);
  EXPECT(again.group_centroids == layer.built.group_centroids);
  const CellIndex index(layer.dense, layer.arrays(), ThreadExecutor(2));
  const std::vector<float> hidden = normal_values(33 * 30, 5);
  for (float guard : {0.0f, 2.0f}) {
    const CellSearch how{
        .k = 5, .probes = 9, .groups = 7, .rescore = 30, .spread = 0.5f, .guard = guard};
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

double exact_log_sum(const CellLayer& layer, const float* x) {
  std::vector<double> scores;
  for (int64_t row = 0; row < layer.dense.rows; ++row) {
    double score = layer.bias[static_cast<size_t>(row)];
    for (int64_t j = 0; j < layer.dense.depth; ++j) {
      score += static_cast<double>(layer.weight[static_cast<size_t>(row * layer.dense.depth + j)]) *
               x[j];
    }
    scores.push_back(score);
  }
  const double most = *std::ranges::max_element(scores);
  double sum = 0;
  for (double score : scores) sum += std::exp(score - most);
  return most + std::log(sum);
}

// The more cells are searched and rows scored, the nearer it comes to the partition function.
void test_partition_function() {
  constexpr int64_t kRows = 3001, kDepth = 30, kCount = 33;
  const CellLayer layer(kRows, kDepth, 200);
  const CellIndex index(layer.dense, layer.arrays(), SerialExecutor());
  const std::vector<float> hidden = normal_values(kCount * kDepth, 5, 0.25f);
  struct Case {
    int64_t probes, rescore;
    float guard;
    double most;
  };
  for (const Case& one : {Case{20, 30, 0, 0.1}, Case{20, 30, 1, 0.1}, Case{200, 30, 0, 0.01}}) {
    CellSearch how{
        .k = 5, .probes = one.probes, .groups = 1000, .rescore = one.rescore, .guard = one.guard};
    const Found plain = search(index, how, hidden, SerialExecutor(), Isa::kScalar);
    how.sum = true;
    how.groups = 1;  // makes no difference
    for (Isa isa : supported_isas()) {
      const Found found = search(index, how, hidden, ThreadExecutor(3), isa);
      for (int64_t i = 0; i < kCount; ++i) {
        const double exact = exact_log_sum(layer, hidden.data() + i * kDepth);
        EXPECT(std::fabs(found.log_sums[static_cast<size_t>(i)] - exact) <= one.most);
      }
      EXPECT(found.scores == plain.scores && found.ids == plain.ids);
    }
  }
}

// Whatever the bytes of an index are, it is refused or it finds rows that exist.
void test_mutated_indexes(int64_t bits, int runs) {
  const CellLayer layer(301, 13, 20, bits);
  const std::vector<float> hidden = normal_values(3 * 13, 7);
  const std::vector<Isa> isas = supported_isas();
  std::mt19937 random(3);
  int refused = 0;
  for (int run = 0; run < runs; ++run) {
    CellLayer hostile = layer;
    hostile.dense.weight = hostile.weight.data();
    hostile.dense.bias = hostile.bias.data();
    BuiltCells& b = hostile.built;
    for (unsigned i = 0; i <= random() % 3; ++i) {
      switch (random() % 15) {
        case 0:
          bits == 8 ? mutate(b.packed, random) : mutate(hostile.codes, random);
          break;
        case 1:
          mutate(b.scale, random);
          break;
        case 2:
          mutate(b.error, random);
          break;
        case 3:
          mutate(b.offsets, random);
          break;
        case 4:
          mutate(b.row_ids, random);
          break;
        case 5:
          mutate(b.centroids, random);
          break;
        case 6:
          mutate(b.centroid_scale, random);
          break;
        case 7:
          mutate(b.cell_bias, random);
          break;
        case 8:
          mutate(b.cell_spread, random);
          break;
        case 9:
          mutate(b.group_offsets, random);
          break;
        case 10:
          mutate(b.group_centroids, random);
          break;
        case 11:
          mutate(b.group_scale, random);
          break;
        case 12:
          mutate(b.group_bias, random);
          break;
        case 13:
          mutate(b.group_spread, random);
          break;
        default:
          mutate(hostile.bias, random);
      }
    }
    try {
      const CellIndex index(hostile.dense, hostile.arrays(), SerialExecutor());
      const CellSearch how{.k = static_cast<int64_t>(1 + random() % 301),
                           .probes = static_cast<int64_t>(1 + random() % 30),
                           .groups = static_cast<int64_t>(1 + random() % 8),
                           .rescore = static_cast<int64_t>(1 + random() % 40),
                           .guard = static_cast<float>(random() % 3),
                           .sum = random() % 2 == 0};
      const Isa isa = isas[random() % isas.size()];
      for (int64_t id : search(index, how, hidden, SerialExecutor(), isa).ids) {
        EXPECT(id >= 0 && id < 301);
      }
    } catch (const std::invalid_argument&) {
      ++refused;
    }
  }
  std::printf("%d mutated indexes of %d bits: %d refused, %d searched\n", runs,
              static_cast<int>(bits), refused, runs - refused);
  EXPECT(refused > runs / 10 && refused < runs);
}

// Codes are made of places that exist, or none are.
void test_mutated_places(int runs) {
  const CellLayer layer(301, 13, 20, 2);
  std::mt19937 random(4);
  int refused = 0;
  for (int run = 0; run < runs; ++run) {
    CellLayer hostile = layer;
    hostile.dense.weight = hostile.weight.data();
    random() % 2 ? mutate(hostile.built.offsets, random) : mutate(hostile.built.row_ids, random);
    try {
      EXPECT(hostile.code(SerialExecutor()).codes.size() == layer.codes.size());
    } catch (const std::invalid_argument&) {
      ++refused;
    }
  }
  EXPECT(refused > runs / 10 && refused < runs);
}

}  // namespace
}  // namespace qcompile

int main() {
  for (int64_t bits : {8, 4, 2}) {
    qcompile::test_same_on_any_number_of_threads(bits);
    qcompile::test_mutated_indexes(bits, 10'000);
  }
  qcompile::test_mutated_places(2'000);
  qcompile::test_partition_function();
}

// Builds that save work, and lookups: equal for every executor, clean under sanitizers.
#include <algorithm>

#include "core/lanes.h"
#include "lsh/tables.h"
#include "lsh/transpose.h"
#include "tests/index_testing.h"
#include "train/candidates.h"

namespace qcompile {
namespace {

constexpr int64_t kRows = 333, kDimension = 19;

TableOptions options_for(FamilyName family, bool incremental, int64_t hashes = 2) {
  return {.family = family,
          .dimension = kDimension,
          .rows = kRows,
          .tables = 5,
          .hashes = hashes,
          .bucket = 4,
          .policy = Policy::kReservoir,
          .seed = 11,
          .incremental = incremental};
}

RowsView view_of(const std::vector<float>& matrix) {
  return {matrix.data(), Storage::kFloat32, kDimension};
}

bool same_buckets(const LshTables& a, const LshTables& b) {
  for (int64_t table = 0; table < a.options().tables; ++table) {
    for (uint32_t key = 0; key >> a.key_bits() == 0; ++key) {
      if (!std::ranges::equal(a.bucket(table, key), b.bucket(table, key))) return false;
    }
  }
  return true;
}

// `hashes` of 12 and more make keys that are folded, or that need four bytes.
void test_incremental(FamilyName family, int64_t hashes) {
  std::vector<float> matrix = normal_values(kRows * kDimension, 1);
  LshTables full(options_for(family, false, hashes));
  LshTables incremental(options_for(family, true, hashes));
  for (uint64_t generation : {0, 1, 2}) {
    full.build(view_of(matrix), {.generation = generation}, SerialExecutor());
    incremental.build(view_of(matrix), {.generation = generation}, ThreadExecutor(3));
    EXPECT(incremental.hashed_rows() == (generation == 0 ? kRows : kRows / 2 + 1));
    EXPECT(same_buckets(full, incremental));
    for (int64_t row = 0; row < kRows; row += 2) matrix[row * kDimension] *= -1;
  }
}

void test_slices(bool incremental, int64_t slices) {
  const std::vector<float> matrix = normal_values(kRows * kDimension, 2);
  LshTables whole(options_for(FamilyName::kDwta, false));
  LshTables sliced(options_for(FamilyName::kDwta, incremental));
  sliced.build(matrix.data(), 0, SerialExecutor());
  for (uint64_t draw : {0, 1}) {
    const BuildNumbers numbers = {.generation = 5, .draw = draw};
    whole.build(view_of(matrix), numbers, SerialExecutor());
    sliced.begin(numbers, slices);
    for (int64_t slice = 1; slice < slices; ++slice) {
      EXPECT(!sliced.advance(view_of(matrix), ThreadExecutor(3)));
    }
    EXPECT(sliced.advance(view_of(matrix), ThreadExecutor(3)));
    EXPECT(!sliced.building());
    EXPECT(same_buckets(whole, sliced));
  }
}

void test_bfloat16() {
  std::vector<float> matrix = normal_values(kRows * kDimension, 3);
  std::vector<uint16_t> halves;
  for (float& value : matrix) {
    halves.push_back(to_bfloat16(value));
    value = from_bfloat16(halves.back());
  }
  LshTables floats(options_for(FamilyName::kDwta, true));
  LshTables bfloats(options_for(FamilyName::kDwta, true));
  floats.build(matrix.data(), 0, SerialExecutor());
  bfloats.build({halves.data(), Storage::kBFloat16, kDimension}, {}, ThreadExecutor(2));
  EXPECT(same_buckets(floats, bfloats));
}

void test_transposition(int64_t depth) {
  const std::vector<float> values = normal_values(kLanes * depth, 4);
  const float* rows[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) rows[lane] = values.data() + lane * depth;
  for (Isa isa : supported_isas()) {
    std::vector<float> columns(depth * kLanes);
    transpose_rows(rows, depth, columns.data(), isa);
    for (int64_t i = 0; i < depth * kLanes; ++i) {
      EXPECT(columns[i] == values[i % kLanes * depth + i / kLanes]);
    }
  }
}

void test_candidates(Sampling sampling) {
  constexpr int64_t kExamples = 70;
  const std::vector<float> matrix = normal_values(kRows * kDimension, 5);
  LshTables tables(options_for(FamilyName::kDwta, false));
  tables.build(matrix.data(), 0, SerialExecutor());
  const SampleOptions options = {
      .neurons = kRows, .active = 9, .sampling = sampling, .threshold = 2, .seed = 3, .step = 8};
  const std::vector<std::vector<uint32_t>> labels(kExamples, {7, 300});
  auto expected = labels;
  add_candidates(tables, matrix.data(), options, expected, SerialExecutor());
  for (int repeat = 0; repeat < 3; ++repeat) {  // memory is used again
    auto lists = labels;
    add_candidates(tables, matrix.data(), options, lists, ThreadExecutor(4));
    EXPECT(lists == expected);
  }
  int64_t active = 0;
  for (std::vector<uint32_t> list : expected) {
    EXPECT(list.size() >= 2 && list.size() <= 9 && list[0] == 7 && list[1] == 300);
    std::sort(list.begin(), list.end());
    EXPECT(std::adjacent_find(list.begin(), list.end()) == list.end() && list.back() < kRows);
    active += static_cast<int64_t>(list.size());
  }
  EXPECT(tables.lookups().last().active == active);
  EXPECT(tables.lookups().last().examples == kExamples);
}

}  // namespace
}  // namespace qcompile

int main() {
  using namespace qcompile;
  for (FamilyName family :
       {FamilyName::kSimHash, FamilyName::kWta, FamilyName::kDwta, FamilyName::kDoph}) {
    for (int64_t hashes : {2, 12, 20}) test_incremental(family, hashes);
  }
  for (bool incremental : {false, true}) {
    for (int64_t slices : {1, 2, 5, 1000}) test_slices(incremental, slices);
  }
  test_bfloat16();
  for (int64_t depth : {1, 7, 8, 16, 31, 128}) test_transposition(depth);
  for (Sampling sampling : {Sampling::kTopK, Sampling::kVanilla, Sampling::kThreshold}) {
    test_candidates(sampling);
  }
}

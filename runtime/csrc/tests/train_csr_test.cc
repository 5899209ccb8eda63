// Products of sparse batches: against sums in double precision, and the same everywhere.
#include <cmath>
#include <stdexcept>

#include "tests/index_testing.h"
#include "train/csr_product.h"
#include "train/row_sums.h"

namespace qcompile {
namespace {

constexpr int64_t kFeatures = 40;
// Examples: features that repeat and descend, none at all, one, all of one kind.
const std::vector<int64_t> kOffsets = {0, 5, 5, 6, 9};
const std::vector<int64_t> kColumns = {39, 3, 3, 0, 17, 39, 5, 5, 5};

bool near(double a, double b) { return std::abs(a - b) <= 1e-5 * (1 + std::abs(b)); }

struct Problem {
  explicit Problem(int64_t depth)
      : depth(depth),
        values(normal_values(static_cast<int64_t>(kColumns.size()), 1)),
        weight(normal_values(kFeatures * depth, 2)),
        dense(normal_values(4 * depth, 3)),
        bias(normal_values(kFeatures, 4)),
        csr(std::span<const int64_t>(kOffsets), kColumns, values, kFeatures) {}

  RowsView rows() const { return {weight.data(), Storage::kFloat32, depth}; }

  int64_t depth;
  std::vector<float> values, weight, dense, bias;
  CsrProduct csr;
};

void test_forward(const Problem& p) {
  std::vector<float> output(4 * p.depth), again(output);
  p.csr.forward(p.rows(), nullptr, output.data(), SerialExecutor());
  p.csr.forward(p.rows(), nullptr, again.data(), ThreadExecutor(3));
  EXPECT(output == again);
  for (int64_t e = 0; e < 4; ++e) {
    for (int64_t j = 0; j < p.depth; ++j) {
      double sum = 0;
      for (int64_t i = kOffsets[e]; i < kOffsets[e + 1]; ++i) {
        sum += static_cast<double>(p.values[i]) * p.weight[kColumns[i] * p.depth + j];
      }
      EXPECT(near(output[e * p.depth + j], sum));
    }
  }
}

void test_backward(const Problem& p) {
  const std::vector<uint32_t> expected = {0, 3, 5, 17, 39};
  EXPECT(p.csr.rows() == expected);
  std::vector<float> rows(5 * p.depth), again(rows);
  p.csr.backward(p.dense.data(), p.depth, rows.data(), SerialExecutor());
  p.csr.backward(p.dense.data(), p.depth, again.data(), ThreadExecutor(3));
  EXPECT(rows == again);
  std::vector<double> sums(kFeatures * p.depth);
  std::vector<double> column(kFeatures);
  for (int64_t e = 0; e < 4; ++e) {
    for (int64_t i = kOffsets[e]; i < kOffsets[e + 1]; ++i) {
      column[kColumns[i]] += p.values[i];
      for (int64_t j = 0; j < p.depth; ++j) {
        sums[kColumns[i] * p.depth + j] +=
            static_cast<double>(p.values[i]) * p.dense[e * p.depth + j];
      }
    }
  }
  std::vector<float> totals(5);
  p.csr.column_sums(totals.data());
  std::vector<float> bias(p.depth);
  p.csr.bias_gradient(p.dense.data(), p.depth, bias.data());
  for (int64_t j = 0; j < p.depth; ++j) {
    double sum = 0;
    for (int64_t e = 0; e < 4; ++e) sum += p.dense[e * p.depth + j];
    EXPECT(near(bias[j], sum));
  }
  for (size_t r = 0; r < expected.size(); ++r) {
    EXPECT(near(totals[r], column[expected[r]]));
    for (int64_t j = 0; j < p.depth; ++j) {
      EXPECT(near(rows[static_cast<int64_t>(r) * p.depth + j], sums[expected[r] * p.depth + j]));
    }
  }
}

void test_products(const Problem& p) {
  std::vector<float> found(kColumns.size());
  p.csr.products(p.dense.data(), p.rows(), p.bias.data(), found.data(), ThreadExecutor(2));
  for (int64_t e = 0; e < 4; ++e) {
    for (int64_t i = kOffsets[e]; i < kOffsets[e + 1]; ++i) {
      double sum = p.bias[kColumns[i]];
      for (int64_t j = 0; j < p.depth; ++j) {
        sum += static_cast<double>(p.dense[e * p.depth + j]) * p.weight[kColumns[i] * p.depth + j];
      }
      EXPECT(near(found[i], sum));
    }
  }
}

void test_values_may_be_replaced(Problem p) {
  const std::vector<float> values = normal_values(p.csr.entries(), 9);
  const CsrProduct fresh(std::span<const int64_t>(kOffsets), kColumns, values, kFeatures);
  p.csr.set_values(values);
  std::vector<float> output(4 * p.depth), expected(output), rows(5 * p.depth), wanted(rows);
  p.csr.forward(p.rows(), nullptr, output.data(), SerialExecutor());
  fresh.forward(p.rows(), nullptr, expected.data(), SerialExecutor());
  p.csr.backward(p.dense.data(), p.depth, rows.data(), SerialExecutor());
  fresh.backward(p.dense.data(), p.depth, wanted.data(), SerialExecutor());
  EXPECT(output == expected && rows == wanted);
  bool refused = false;
  try {
    p.csr.set_values(std::span<const float>(values).subspan(1));
  } catch (const std::invalid_argument&) {
    refused = true;
  }
  EXPECT(refused);
}

void test_kernels_are_the_same_everywhere(int64_t depth) {
  const std::vector<float> rows = normal_values(20 * depth, 5);
  std::vector<uint16_t> halves;
  for (float value : rows) halves.push_back(to_bfloat16(value));
  const std::vector<uint32_t> ids = {19, 0, 3, 3, 8, 1, 2, 4, 5, 6, 7, 9, 10};
  const std::vector<float> scales = normal_values(static_cast<int64_t>(ids.size()), 6);
  std::vector<std::vector<float>> floats, bfloats;
  for (Isa isa : supported_isas()) {
    const RowSumKernels& kernels = row_sum_kernels(isa);
    const auto count = static_cast<int64_t>(ids.size());
    floats.emplace_back(normal_values(depth, 7));
    kernels.of_floats(rows.data(), depth, ids.data(), scales.data(), count, floats.back().data());
    bfloats.emplace_back(normal_values(depth, 7));
    kernels.of_bfloats(halves.data(), depth, ids.data(), scales.data(), count,
                       bfloats.back().data());
    EXPECT(floats.back() == floats.front() && bfloats.back() == bfloats.front());
  }
  for (int64_t j = 0; j < depth; ++j) EXPECT(std::abs(floats[0][j] - bfloats[0][j]) < 0.2f);
}

void refuse(const std::vector<int64_t>& offsets, const std::vector<int64_t>& columns,
            const std::vector<float>& values, const char* what) {
  try {
    CsrProduct(std::span<const int64_t>(offsets), columns, values, kFeatures);
  } catch (const std::invalid_argument& error) {
    EXPECT(std::string(error.what()).find(what) != std::string::npos);
    return;
  }
  EXPECT(false);
}

void test_bad_batches() {
  refuse({0, 1}, {40}, {1}, "row 0 has feature 40");
  refuse({0, 0, 1}, {-1}, {1}, "row 1 has feature -1");
  refuse({0, 0, 1}, {7}, {NAN}, "row 1, feature 7");
  refuse({0, 1}, {7}, {INFINITY}, "not finite");
  refuse({1, 1}, {7}, {1}, "begin with 0");
  refuse({}, {}, {}, "begin with 0");
  refuse({0, 2, 1}, {7}, {1}, "descend at row 1");
  refuse({0, 2}, {7}, {1}, "end at 2");
  refuse({0, 1}, {7, 8}, {1}, "do not fit");
}

void test_nothing() {
  const std::vector<int64_t> offsets = {0};
  const CsrProduct empty(std::span<const int64_t>(offsets), {}, {}, kFeatures);
  empty.forward({nullptr, Storage::kFloat32, 3}, nullptr, nullptr, SerialExecutor());
  empty.backward(nullptr, 3, nullptr, SerialExecutor());
  EXPECT(empty.examples() == 0 && empty.rows().empty());
}

}  // namespace
}  // namespace qcompile

int main() {
  using namespace qcompile;
  for (int64_t depth : {1, 16, 37, 128, 150, 300}) {
    const Problem problem(depth);
    test_forward(problem);
    test_backward(problem);
    test_products(problem);
    test_values_may_be_replaced(problem);
    test_kernels_are_the_same_everywhere(depth);
  }
  test_bad_batches();
  test_nothing();
}

// The k best and the partition function on threads and on awkward input; what they return is tested
// from Python.
#include <limits>

#include "index/log_sum.h"
#include "index/operators.h"
#include "tests/index_testing.h"

namespace qcompile {
namespace {

struct Answers {
  std::vector<float> scores;
  std::vector<int64_t> ids;
  std::vector<float> log_sums;
};

Answers answer(const TestLayer& layer, const std::vector<float>& hidden, int64_t k,
               const Executor& executor, Isa isa) {
  const auto count = static_cast<int64_t>(hidden.size()) / layer.dense.depth;
  const auto size = static_cast<size_t>(count * k);
  Answers answers{std::vector<float>(size), std::vector<int64_t>(size),
                  std::vector<float>(static_cast<size_t>(count))};
  linear_top_k_log_sum(*layer.head, hidden.data(), count, k, answers.scores.data(),
                       answers.ids.data(), answers.log_sums.data(), executor, isa);
  return answers;
}

// NaN equals NaN here.
bool same(const std::vector<float>& a, const std::vector<float>& b) {
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i] != b[i] && !(std::isnan(a[i]) && std::isnan(b[i]))) return false;
  }
  return a.size() == b.size();
}

// A greater `size` of the queries makes a more peaked distribution.
void test_same_however_computed(int64_t rows, int64_t count, int64_t k, float size) {
  constexpr int64_t kDepth = 36;
  const TestLayer layer(rows, kDepth, 1);
  const std::vector<float> hidden = normal_values(count * kDepth, 2, size);
  const Answers expected = answer(layer, hidden, k, SerialExecutor(), Isa::kScalar);
  std::vector<float> scores(static_cast<size_t>(count * k));
  std::vector<int64_t> ids(scores.size());
  linear_top_k(*layer.head, hidden.data(), count, k, scores.data(), ids.data(), SerialExecutor());
  EXPECT(expected.scores == scores && expected.ids == ids);
  for (Isa isa : supported_isas()) {
    const Answers found = answer(layer, hidden, k, ThreadExecutor(3), isa);
    EXPECT(found.ids == expected.ids);
    EXPECT(same(found.scores, expected.scores) && same(found.log_sums, expected.log_sums));
  }
}

void test_concurrent_calls() {
  const TestLayer layer(3000, 40, 5);
  const std::vector<float> hidden = normal_values(20 * 40, 6, 2);
  const Answers expected = answer(layer, hidden, 5, SerialExecutor(), best_matrix_isa());
  call_from_many_threads([&] {
    const Answers found = answer(layer, hidden, 5, SerialExecutor(), best_matrix_isa());
    EXPECT(found.ids == expected.ids && same(found.log_sums, expected.log_sums));
  });
}

void test_values_without_a_bound() {
  TestLayer layer(1500, 24, 9);
  layer.bias[700] = -std::numeric_limits<float>::infinity();
  layer.head = std::make_unique<Head>(layer.dense, layer.packed(), SerialExecutor());
  const float bad[] = {std::nanf(""), std::numeric_limits<float>::infinity(),
                       std::numeric_limits<float>::max(), std::numeric_limits<float>::denorm_min()};
  for (float value : bad) {
    std::vector<float> hidden = normal_values(6 * 24, 10);
    hidden[5] = hidden[24 * 3] = value;
    const Answers expected = answer(layer, hidden, 9, SerialExecutor(), Isa::kScalar);
    for (Isa isa : supported_isas()) {
      const Answers found = answer(layer, hidden, 9, ThreadExecutor(2), isa);
      EXPECT(found.ids == expected.ids && same(found.log_sums, expected.log_sums));
    }
  }
}

// Bounds of a hostile file may be as wide as floats go; nothing may be read or written beyond.
void test_bounds_that_say_nothing() {
  TestLayer layer(2000, 16, 3);
  for (float error : {1e30f, std::numeric_limits<float>::max()}) {
    for (size_t i = 0; i < layer.error.size(); i += 7) layer.error[i] = error;
    const Packed packed = layer.packed();
    layer.head = std::make_unique<Head>(layer.dense, packed, SerialExecutor());
    const std::vector<float> hidden = normal_values(5 * 16, 4);
    const Answers expected = answer(layer, hidden, 4, SerialExecutor(), Isa::kScalar);
    for (Isa isa : supported_isas()) {
      const Answers found = answer(layer, hidden, 4, ThreadExecutor(2), isa);
      EXPECT(found.ids == expected.ids && same(found.log_sums, expected.log_sums));
    }
  }
}

}  // namespace
}  // namespace qcompile

int main() {
  using namespace qcompile;
  for (float size : {0.0f, 0.1f, 1.0f, 3.0f}) {
    test_same_however_computed(1, 1, 1, size);
    test_same_however_computed(700, 33, 3, size);
    test_same_however_computed(9000, 70, 100, size);
    for (int64_t count : {1, 3, 4, 17}) test_same_however_computed(20'000, count, 2, size);
  }
  test_concurrent_calls();
  test_values_without_a_bound();
  test_bounds_that_say_nothing();
}

// The operators on threads and on awkward input; what they return is tested from Python.
#include <algorithm>
#include <limits>

#include "index/operators.h"
#include "tests/index_testing.h"

namespace qcompile {
namespace {

struct Answers {
  std::vector<float> scores;
  std::vector<int64_t> ids;
  std::vector<float> probabilities, all;
  bool operator==(const Answers&) const = default;
};

Answers answer(const TestLayer& layer, const std::vector<float>& hidden, int64_t k,
               const Executor& executor, Isa isa) {
  const auto count = static_cast<int64_t>(hidden.size()) / layer.dense.depth;
  const auto size = static_cast<size_t>(count * layer.dense.rows);
  Answers answers{std::vector<float>(static_cast<size_t>(count * k)),
                  std::vector<int64_t>(static_cast<size_t>(count * k)), std::vector<float>(size),
                  std::vector<float>(size)};
  linear_top_k(*layer.head, hidden.data(), count, k, answers.scores.data(), answers.ids.data(),
               executor, isa);
  linear_softmax(*layer.head, hidden.data(), count, answers.probabilities.data(), executor, isa);
  linear(layer.dense, hidden.data(), count, answers.all.data(), executor, isa);
  return answers;
}

void test_same_on_any_number_of_threads(int64_t rows, int64_t count, int64_t k) {
  constexpr int64_t kDepth = 72;
  const TestLayer layer(rows, kDepth, 1);
  const std::vector<float> hidden = normal_values(count * kDepth, 2, 3);
  for (Isa isa : supported_isas()) {
    const Answers alone = answer(layer, hidden, k, SerialExecutor(), isa);
    const Answers together = answer(layer, hidden, k, ThreadExecutor(3), isa);
    EXPECT(alone.scores == together.scores && alone.ids == together.ids);
    EXPECT(alone.all == together.all);
    for (size_t i = 0; i < alone.probabilities.size(); ++i) {
      const float p = alone.probabilities[i];
      EXPECT(std::fabs(p - together.probabilities[i]) <= 1e-7f + 2e-5f * p);
    }
  }
}

// One head, many callers.
void test_concurrent_calls() {
  const TestLayer layer(3000, 40, 5);
  const std::vector<float> hidden = normal_values(20 * 40, 6, 2);
  const Answers expected = answer(layer, hidden, 5, SerialExecutor(), best_matrix_isa());
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 5; ++i) {
        EXPECT(answer(layer, hidden, 5, SerialExecutor(), best_matrix_isa()) == expected);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

void test_values_without_a_bound() {
  const TestLayer layer(700, 24, 9);
  const float bad[] = {std::nanf(""), std::numeric_limits<float>::infinity(),
                       std::numeric_limits<float>::max(), std::numeric_limits<float>::denorm_min()};
  for (float value : bad) {
    std::vector<float> hidden = normal_values(6 * 24, 10);
    hidden[5] = hidden[24 * 3] = value;
    const Answers expected = answer(layer, hidden, 9, SerialExecutor(), Isa::kScalar);
    for (Isa isa : supported_isas()) {
      const Answers found = answer(layer, hidden, 9, ThreadExecutor(2), isa);
      EXPECT(found.ids == expected.ids);
      EXPECT(*std::ranges::max_element(found.ids) < 700 &&
             *std::ranges::min_element(found.ids) >= 0);
    }
  }
}

void test_bad_figures_are_refused() {
  TestLayer layer(50, 8, 1);
  layer.error[49] = -1;
  bool refused = false;
  try {
    const Head head(layer.dense, {layer.packed.data(), layer.scale.data(), layer.error.data()},
                    SerialExecutor());
  } catch (const std::invalid_argument&) {
    refused = true;
  }
  EXPECT(refused);
}

}  // namespace
}  // namespace qcompile

int main() {
  using namespace qcompile;
  test_same_on_any_number_of_threads(1, 1, 1);
  test_same_on_any_number_of_threads(700, 33, 3);
  test_same_on_any_number_of_threads(2000, 1, 20);
  test_same_on_any_number_of_threads(9000, 70, 1000);
  for (int64_t count : {1, 8, 16, 17, 18}) test_same_on_any_number_of_threads(30'000, count, 2);
  test_concurrent_calls();
  test_values_without_a_bound();
  test_bad_figures_are_refused();
}

// The operators on threads and on awkward input; what they return is tested from Python.
#include <algorithm>
#include <limits>

#include "index/operators.h"
#include "tests/index_testing.h"
#include "tests/mutation.h"

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
  call_from_many_threads(
      [&] { EXPECT(answer(layer, hidden, 5, SerialExecutor(), best_matrix_isa()) == expected); });
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

// Layers as a damaged or hostile file has them: refused, or answered with rows that there are.
void test_mutated_layers(Kept kept, int rounds) {
  std::mt19937 random(static_cast<unsigned>(kept) + 1);
  constexpr int64_t kRows = 300, kDepth = 13, kCount = 5, kBest = 4;
  const std::vector<float> hidden = normal_values(kCount * kDepth, 3);
  int refused = 0;
  for (int round = 0; round < rounds; ++round) {
    TestLayer layer(kRows, kDepth, 2, kept);
    for (unsigned changes = 1 + random() % 3; changes > 0; --changes) {
      switch (random() % 5) {
        case 0:
          mutate(layer.high, random);
          break;
        case 1:
          if (!layer.low.empty()) mutate(layer.low, random);
          break;
        case 2:
          mutate(layer.scale, random);
          break;
        case 3:
          mutate(layer.error, random);
          break;
        default:
          mutate(layer.bias, random);
      }
    }
    try {
      const Head head(layer.head->dense(), layer.packed(), SerialExecutor(), RoughRows::kAlways);
      for (int64_t count : {int64_t{1}, kCount}) {
        std::vector<float> scores(kCount * kBest);
        std::vector<int64_t> ids(kCount * kBest);
        linear_top_k(head, hidden.data(), count, kBest, scores.data(), ids.data(),
                     SerialExecutor());
        for (int64_t i = 0; i < count * kBest; ++i) {
          EXPECT(ids[static_cast<size_t>(i)] >= 0 && ids[static_cast<size_t>(i)] < kRows);
        }
      }
    } catch (const std::invalid_argument&) {
      ++refused;
    }
  }
  EXPECT(refused > 0 && refused < rounds);
}

void test_bad_figures_are_refused() {
  TestLayer layer(50, 8, 1);
  layer.error[49] = -1;
  bool refused = false;
  try {
    const Head head(layer.dense, layer.packed(), SerialExecutor());
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
  for (Kept kept : {Kept::kFloat32, Kept::kBFloat16, Kept::kPacked}) {
    test_mutated_layers(kept, 3000);
  }
}

// Row-wise Adam: the same for every executor and instruction set; values are tested from Python.
#include <cmath>
#include <stdexcept>

#include "tests/index_testing.h"
#include "train/row_adam.h"

namespace qcompile {
namespace {

constexpr int64_t kRows = 50;

struct Parameter {
  explicit Parameter(int64_t depth)
      : value(normal_values(kRows * depth, 1)),
        first(static_cast<size_t>(kRows * depth)),
        second(first.size()),
        depth(depth) {}

  AdamMatrix matrix() { return {value.data(), first.data(), second.data(), depth}; }
  bool operator==(const Parameter&) const = default;

  std::vector<float> value, first, second;
  int64_t depth;
};

Parameter train(int64_t depth, const Executor& executor) {
  Parameter parameter(depth);
  RowAdam adam(kRows, 0);
  for (int64_t step = 0; step < 1100; ++step) {  // beyond kFlushAfter
    const std::vector<int64_t> ids = {step % 7, step % 31, kRows - 1, step % 7};
    const std::vector<float> gradients = normal_values(4 * depth, static_cast<unsigned>(step));
    adam.step(parameter.matrix(), ids, gradients.data(), {.learning_rate = 1e-3}, executor);
  }
  EXPECT(adam.steps() == 1100);
  adam.flush(parameter.matrix(), executor);
  EXPECT(adam.steps() == 1100);
  return parameter;
}

void test_same_on_any_number_of_threads(int64_t depth) {
  const Parameter alone = train(depth, SerialExecutor());
  EXPECT(alone == train(depth, ThreadExecutor(3)));
  for (float value : alone.value) EXPECT(std::isfinite(value));
}

void test_kernels_are_the_same_everywhere(int64_t depth) {
  const IdleStep idle{0.1f, 0.9f, 1e-8f, 0.5f, 0.99f};
  const GradientStep step{0.1f, 0.01f, 0.99f, 1e-3f, 0.3f, 1e-8f};
  const std::vector<float> gradient = normal_values(depth, 5);
  std::vector<Parameter> results;
  for (Isa isa : supported_isas()) {
    Parameter& p = results.emplace_back(depth);
    const AdamRow row{p.value.data(), p.first.data(), p.second.data(), depth};
    adam_kernels(isa).gradient(row, gradient.data(), step);
    adam_kernels(isa).idle(row, idle);
    EXPECT(p == results.front());
  }
}

void test_a_row_that_does_not_exist_changes_nothing() {
  Parameter parameter(3);
  const Parameter before = parameter;
  RowAdam adam(kRows, 0);
  const std::vector<float> gradients(6, 1.0f);
  for (int64_t wrong : {int64_t{-1}, kRows, int64_t{1} << 40}) {
    bool refused = false;
    try {
      adam.step(parameter.matrix(), std::vector<int64_t>{0, wrong}, gradients.data(), {},
                SerialExecutor());
    } catch (const std::out_of_range&) {
      refused = true;
    }
    EXPECT(refused && adam.steps() == 0 && parameter == before);
  }
}

void test_nothing_to_do() {
  Parameter parameter(3);
  const Parameter before = parameter;
  RowAdam adam(kRows, 0);
  adam.flush(parameter.matrix(), SerialExecutor());
  adam.step(parameter.matrix(), {}, nullptr, {}, SerialExecutor());
  adam.flush(parameter.matrix(), SerialExecutor());
  EXPECT(parameter == before && adam.steps() == 1);
}

}  // namespace
}  // namespace qcompile

int main() {
  using namespace qcompile;
  for (int64_t depth : {1, 16, 37}) {
    test_same_on_any_number_of_threads(depth);
    test_kernels_are_the_same_everywhere(depth);
  }
  test_a_row_that_does_not_exist_changes_nothing();
  test_nothing_to_do();
}

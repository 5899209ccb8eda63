// Row-wise Adam: the same for every executor and instruction set; values are tested from Python.
#include <cmath>
#include <stdexcept>

#include "tests/index_testing.h"
#include "train/row_adam.h"

namespace qcompile {
namespace {

constexpr int64_t kRows = 50;

// A parameter and its moments in one storage.
struct Parameter {
  Parameter(Storage storage, int64_t depth) : storage(storage), depth(depth) {
    const std::vector<float> initial = normal_values(kRows * depth, 1);
    if (storage == Storage::kFloat32) {
      value = initial;
      first = second = std::vector<float>(initial.size());
      return;
    }
    for (float weight : initial) {
      high.push_back(split_float(weight).high);
      low.push_back(split_float(weight).low);
    }
    half_first = half_second = std::vector<uint16_t>(initial.size());
  }

  AdamMatrix matrix() {
    if (storage == Storage::kFloat32) {
      return {{value.data(), nullptr, kRows, depth, storage}, first.data(), second.data()};
    }
    return {
        {high.data(), low.data(), kRows, depth, storage}, half_first.data(), half_second.data()};
  }
  bool operator==(const Parameter&) const = default;

  Storage storage;
  int64_t depth;
  std::vector<float> value, first, second;
  std::vector<uint16_t> high, half_first, half_second;
  std::vector<int16_t> low;
};

Parameter train(Storage storage, int64_t depth, IdleRows idle, const Executor& executor) {
  Parameter parameter(storage, depth);
  RowAdam adam(kRows, 0, idle);
  for (int64_t step = 0; step < 1100; ++step) {  // beyond kFlushAfter
    const std::vector<int64_t> ids = {step % 7, step % 31, kRows - 1, step % 7};
    const std::vector<float> gradients = normal_values(4 * depth, static_cast<unsigned>(step));
    const AdamRates rates{.learning_rate = 1e-3, .weight_decay = 0.01};
    BoundAdam bound(adam, {parameter.matrix(), rates});
    if (step % 3 == 0) bound.catch_up(std::vector<uint32_t>{3, 0, kRows - 1}, executor);
    step_repeated(bound, ids, gradients.data(), executor);
    adam.finish_step();
  }
  EXPECT(adam.steps() == 1100);
  BoundAdam(adam, {parameter.matrix(), {}}).flush(executor);
  EXPECT(adam.steps() == 1100);
  return parameter;
}

void test_same_on_any_number_of_threads(Storage storage, int64_t depth, IdleRows idle) {
  const Parameter alone = train(storage, depth, idle, SerialExecutor());
  EXPECT(alone == train(storage, depth, idle, ThreadExecutor(3)));
  for (float value : alone.value) EXPECT(std::isfinite(value));
}

void test_kernels_are_the_same_everywhere(Storage storage, int64_t depth) {
  const IdleTable table{{{}, {0.99f, 0.5f, 0.99f, 0, 2}}, {{0.1f, 0.9f}, {0.2f, 0.7f}}, 1e-8f};
  const GradientStep step{0.999f, 0.1f, 0.01f, 0.99f, 1e-3f, 0.3f, 1e-8f};
  const std::vector<float> gradients = normal_values(2 * depth, 5);
  const uint32_t ids[] = {7, kRows - 1};
  const int32_t missed[] = {1, 0};
  std::vector<Parameter> results;
  for (Isa isa : supported_isas()) {
    Parameter& p = results.emplace_back(storage, depth);
    for (uint64_t steps = 1; steps < 4; ++steps) {
      const RowBlock block{ids, missed, 2, steps};
      adam_kernels(storage, isa).step(p.matrix(), block, table, gradients.data(), step);
      adam_kernels(storage, isa).idle(p.matrix(), {ids, missed, 1, steps}, table);
    }
    EXPECT(p == results.front());
  }
}

void test_a_row_that_does_not_exist_changes_nothing() {
  Parameter parameter(Storage::kFloat32, 3);
  const Parameter before = parameter;
  RowAdam adam(kRows, 0);
  BoundAdam bound(adam, {parameter.matrix(), {}});
  const std::vector<float> gradients(6, 1.0f);
  for (int64_t wrong : {int64_t{-1}, kRows, int64_t{1} << 40}) {
    bool refused = false;
    try {
      step_repeated(bound, std::vector<int64_t>{0, wrong}, gradients.data(), SerialExecutor());
    } catch (const std::out_of_range&) {
      refused = true;
    }
    EXPECT(refused && adam.steps() == 0 && parameter == before);
  }
}

void test_one_step_before_it_is_finished() {
  Parameter parameter(Storage::kFloat32, 3);
  RowAdam adam(kRows, 0);
  BoundAdam bound(adam, {parameter.matrix(), {}});
  const std::vector<float> gradients(3, 1.0f);
  const std::vector<int64_t> ids{4};
  step_repeated(bound, ids, gradients.data(), SerialExecutor());
  const Parameter before = parameter;
  bool refused = false;
  try {
    step_repeated(bound, ids, gradients.data(), SerialExecutor());
  } catch (const std::logic_error&) {
    refused = true;
  }
  EXPECT(refused && adam.steps() == 1 && parameter == before);
  adam.finish_step();
  step_repeated(bound, ids, gradients.data(), SerialExecutor());
  EXPECT(adam.steps() == 2);
}

void test_nothing_to_do() {
  Parameter parameter(Storage::kFloat32, 3);
  const Parameter before = parameter;
  RowAdam adam(kRows, 0);
  BoundAdam bound(adam, {parameter.matrix(), {}});
  bound.flush(SerialExecutor());
  step_repeated(bound, {}, nullptr, SerialExecutor());
  bound.flush(SerialExecutor());
  EXPECT(parameter == before && adam.steps() == 1);
}

}  // namespace
}  // namespace qcompile

int main() {
  using namespace qcompile;
  for (Storage storage : {Storage::kFloat32, Storage::kBFloat16}) {
    for (int64_t depth : {1, 16, 37, 130}) {
      test_same_on_any_number_of_threads(storage, depth, IdleRows::kCatchUp);
      test_same_on_any_number_of_threads(storage, depth, IdleRows::kRest);
      test_kernels_are_the_same_everywhere(storage, depth);
    }
  }
  test_a_row_that_does_not_exist_changes_nothing();
  test_one_step_before_it_is_finished();
  test_nothing_to_do();
}

// Row-wise SGD: the same for every executor and instruction set; values are tested from Python.
#include <cmath>

#include "tests/index_testing.h"
#include "train/row_sgd.h"

namespace qcompile {
namespace {

constexpr int64_t kRows = 50;

// A parameter and its momentum in one storage.
struct Parameter {
  Parameter(Storage storage, bool momentum, int64_t depth)
      : storage(storage), momentum(momentum), depth(depth) {
    const std::vector<float> initial = normal_values(kRows * depth, 1);
    if (storage == Storage::kFloat32) {
      value = initial;
      if (momentum) buffer.resize(initial.size());
      return;
    }
    for (float weight : initial) {
      high.push_back(split_float(weight).high);
      low.push_back(split_float(weight).low);
    }
    if (momentum) half_buffer.resize(initial.size());
  }

  SgdMatrix matrix() {
    if (storage == Storage::kFloat32) {
      return {{value.data(), nullptr, kRows, depth, storage}, momentum ? buffer.data() : nullptr};
    }
    return {{high.data(), low.data(), kRows, depth, storage},
            momentum ? half_buffer.data() : nullptr};
  }
  bool operator==(const Parameter&) const = default;

  Storage storage;
  bool momentum;
  int64_t depth;
  std::vector<float> value, buffer;
  std::vector<uint16_t> high, half_buffer;
  std::vector<int16_t> low;
};

Parameter train(Parameter parameter, const Executor& executor) {
  RowSgd sgd(kRows, 0);
  for (int64_t step = 0; step < 1100; ++step) {  // beyond kFlushAfter
    const std::vector<int64_t> ids = {step % 7, step % 31, kRows - 1, step % 7};
    const auto seed = static_cast<unsigned>(step);
    const std::vector<float> gradients = normal_values(4 * parameter.depth, seed);
    const bool coasting = parameter.momentum && step % 20 != 0;
    const SgdRates rates{1e-3, coasting ? 0.9 : 0.0, 0.01};
    BoundSgd bound(sgd, {parameter.matrix(), rates});
    if (step % 3 == 0) bound.catch_up(std::vector<uint32_t>{3, 0, kRows - 1}, executor);
    step_repeated(bound, ids, gradients.data(), executor);
    sgd.finish_step();
  }
  BoundSgd(sgd, {parameter.matrix(), {}}).flush(executor);
  EXPECT(sgd.steps() == 1100);
  return parameter;
}

void test_same_on_any_number_of_threads(const Parameter& start) {
  const Parameter alone = train(start, SerialExecutor());
  EXPECT(alone == train(start, ThreadExecutor(3)));
  EXPECT(!(alone == start));
  for (float value : alone.value) EXPECT(std::isfinite(value));
}

void test_kernels_are_the_same_everywhere(const Parameter& start) {
  SgdIdleTable table{{{}, {0.99f, -0.3f, 0.01f, 0.5f}}, false};
  const std::vector<float> gradients = normal_values(2 * start.depth, 5);
  const uint32_t ids[] = {7, kRows - 1};
  const int32_t missed[] = {1, 0};
  std::vector<Parameter> results;
  for (Isa isa : supported_isas()) {
    Parameter& p = results.emplace_back(start);
    const SgdKernels& kernels = sgd_kernels(p.storage, p.momentum, isa);
    for (uint64_t steps = 1; steps < 4; ++steps) {
      kernels.step(p.matrix(), {ids, missed, 2, steps}, table, gradients.data(),
                   {0.1f, p.momentum ? 0.9f : 0.0f, 0.01f});
      kernels.idle(p.matrix(), {ids, missed, 1, steps}, table);
    }
    EXPECT(p == results.front());
  }
}

}  // namespace
}  // namespace qcompile

int main() {
  using namespace qcompile;
  for (Storage storage : {Storage::kFloat32, Storage::kBFloat16}) {
    for (bool momentum : {false, true}) {
      for (int64_t depth : {1, 16, 37, 130}) {
        const Parameter start(storage, momentum, depth);
        test_same_on_any_number_of_threads(start);
        test_kernels_are_the_same_everywhere(start);
      }
    }
  }
}

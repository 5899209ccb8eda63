// Sampling and sparse softmax: results depend on no thread and no instruction set, and buffers of
// exact size show every access beyond them. Values are tested from Python.
#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "tests/index_testing.h"
#include "train/kernels.h"
#include "train/sparse_softmax.h"

namespace qcompile {
namespace {

struct Batch {
  Batch(int64_t examples, int64_t depth, int64_t neurons)
      : hidden(normal_values(examples * depth, 1)),
        weight(normal_values(neurons * depth, 2)),
        bias(normal_values(neurons, 3)),
        scale(normal_values(examples, 4)),
        labels(static_cast<size_t>(examples * 2), -1),
        tables({.dimension = depth, .rows = neurons, .tables = 6, .hashes = 1, .bucket = 9}),
        depth(depth),
        neurons(neurons) {
    for (int64_t e = 0; e < examples; ++e) labels[static_cast<size_t>(2 * e)] = e % neurons;
    labels.back() = labels.front();
    tables.build(weight.data(), 0, SerialExecutor());
  }

  std::vector<float> hidden, weight, bias, scale;
  std::vector<int64_t> labels;
  LshTables tables;
  int64_t depth, neurons;
};

struct Results {
  std::vector<float> log_probability, grad_hidden, grad_rows, grad_bias;
  std::vector<uint32_t> rows;
  bool operator==(const Results&) const = default;
};

Results run(const Batch& batch, int64_t active, int64_t negatives, const Executor& executor) {
  const auto examples = static_cast<int64_t>(batch.scale.size());
  SparseSoftmax softmax(sample_active(
      &batch.tables, batch.hidden.data(), {batch.labels.data(), examples, 2},
      {.neurons = batch.neurons, .active = active, .negatives = negatives}, executor));
  const OutputLayer layer{.weight = {batch.weight.data(), Storage::kFloat32, batch.depth},
                          .bias = {batch.bias.data(), Storage::kFloat32, 1}};
  const auto rows = static_cast<size_t>(softmax.rows());
  const auto depth = static_cast<size_t>(batch.depth);
  Results results{std::vector<float>(batch.scale.size()), std::vector<float>(batch.hidden.size()),
                  std::vector<float>(rows * depth), std::vector<float>(rows), softmax.set().rows};
  softmax.forward(batch.hidden.data(), layer, results.log_probability.data(), executor);
  softmax.backward(batch.hidden.data(), layer, batch.scale.data(), results.grad_hidden.data(),
                   results.grad_rows.data(), results.grad_bias.data(), executor);
  return results;
}

void test_same_on_any_number_of_threads(int64_t examples, int64_t depth, int64_t neurons) {
  const Batch batch(examples, depth, neurons);
  for (int64_t active : {int64_t{1}, int64_t{5}, neurons}) {
    for (int64_t negatives : {int64_t{0}, int64_t{3}, neurons + 5}) {
      const Results alone = run(batch, active, negatives, SerialExecutor());
      EXPECT(alone == run(batch, active, negatives, ThreadExecutor(3)));
      for (float value : alone.log_probability) EXPECT(value <= 1e-5f);
      for (float value : alone.grad_rows) EXPECT(std::isfinite(value));
      for (uint32_t row : alone.rows) EXPECT(row < neurons);
    }
  }
}

// The gradients of a softmax's logits sum to zero, and so do those of the biases.
void test_bias_gradients_cancel() {
  const Batch batch(20, 11, 60);
  for (int64_t active : {5, 60}) {
    double sum = 0;
    for (float value : run(batch, active, 7, SerialExecutor()).grad_bias) sum += value;
    EXPECT(std::abs(sum) < 1e-4);
  }
}

template <typename Error>
void expect_refused(Batch batch, int64_t label) {
  batch.labels[2] = label;
  bool refused = false;
  try {
    run(batch, 5, 3, SerialExecutor());
  } catch (const Error&) {
    refused = true;
  }
  EXPECT(refused);
}

void test_kernels_are_the_same_everywhere(int64_t rows, int64_t columns, int64_t depth) {
  const std::vector<float> a = normal_values(rows * depth, 1);
  const std::vector<float> b = normal_values(depth * columns, 2);
  const std::vector<float> start = normal_values(rows * columns, 3);
  std::vector<float> expected = start;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t j = 0; j < columns; ++j) {
      float& sum = expected[static_cast<size_t>(r * columns + j)];
      for (int64_t k = 0; k < depth; ++k) {
        sum = std::fma(a[static_cast<size_t>(k * rows + r)],
                       b[static_cast<size_t>(k * columns + j)], sum);
      }
    }
  }
  const int64_t size = std::min(rows, columns) * depth;
  const float product = train_kernels(Isa::kScalar).dot(a.data(), b.data(), size);
  for (Isa isa : supported_isas()) {
    std::vector<float> c = start;
    // a is stored transposed: its rows are columns apart by one.
    train_kernels(isa).multiply_add(rows, columns, depth, {a.data(), 1, rows}, b.data(), columns,
                                    c.data(), columns);
    EXPECT(c == expected);
    EXPECT(train_kernels(isa).dot(a.data(), b.data(), size) == product);
    std::vector<float> y(b.begin(), b.begin() + size), z = y;
    train_kernels(isa).add_scaled(0.3f, a.data(), y.data(), size);
    train_kernels(Isa::kScalar).add_scaled(0.3f, a.data(), z.data(), size);
    EXPECT(y == z);
  }
}

}  // namespace
}  // namespace qcompile

int main() {
  using namespace qcompile;
  for (int64_t examples : {1, 9, 70}) {
    for (int64_t depth : {1, 17, 64}) test_same_on_any_number_of_threads(examples, depth, 40);
  }
  test_same_on_any_number_of_threads(3, 5, 1);
  test_bias_gradients_cancel();
  expect_refused<std::out_of_range>(Batch(4, 5, 40), 40);
  expect_refused<std::invalid_argument>(Batch(4, 5, 40), -1);
  for (int64_t rows : {1, 6, 13}) {
    for (int64_t columns : {1, 16, 65, 150}) {
      for (int64_t depth : {1, 19}) test_kernels_are_the_same_everywhere(rows, columns, depth);
    }
  }
}

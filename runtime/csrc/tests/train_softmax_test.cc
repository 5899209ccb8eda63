// Sampling and sparse softmax: results depend on no thread and no instruction set, and buffers of
// exact size show every access beyond them. Values are tested from Python.
#include <algorithm>
#include <array>
#include <cmath>
#include <stdexcept>

#include "tests/index_testing.h"
#include "train/bfloat16_kernels.h"
#include "train/column_kernels.h"
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
    for (float value : weight) halves.push_back(to_bfloat16(value));
  }

  std::vector<float> hidden, weight, bias, scale;
  std::vector<uint16_t> halves;  // the weights in bfloat16
  std::vector<int64_t> labels;
  LshTables tables;
  int64_t depth, neurons;
};

struct Results {
  std::vector<float> log_probability, grad_hidden, grad_rows, grad_bias;
  std::vector<uint32_t> rows;
  bool operator==(const Results&) const = default;
};

Results run(const Batch& batch, int64_t active, int64_t negatives, const Executor& executor,
            Mode mode = Mode::kLsh, Storage storage = Storage::kFloat32,
            Accumulation accumulation = Accumulation::kDeterministic) {
  const auto examples = static_cast<int64_t>(batch.scale.size());
  SparseSoftmax softmax(
      sample_active(
          &batch.tables, batch.hidden.data(), {batch.labels.data(), examples, 2},
          {.mode = mode, .neurons = batch.neurons, .active = active, .negatives = negatives},
          executor),
      accumulation);
  const bool full = storage == Storage::kFloat32;
  const OutputLayer layer{.weight = {full ? static_cast<const void*>(batch.weight.data())
                                          : static_cast<const void*>(batch.halves.data()),
                                     storage, batch.depth},
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
  for (int64_t i = 0; i < 3 * 3 * 3 * 2; ++i) {
    const int64_t active = std::array{int64_t{1}, int64_t{5}, neurons}[i % 3];
    const int64_t negatives = std::array{int64_t{0}, int64_t{3}, neurons + 5}[i / 3 % 3];
    const Mode mode = std::array{Mode::kLsh, Mode::kSampled, Mode::kFull}[i / 9 % 3];
    const Storage storage = i < 27 ? Storage::kFloat32 : Storage::kBFloat16;
    const Results alone = run(batch, active, negatives, SerialExecutor(), mode, storage);
    EXPECT(alone == run(batch, active, negatives, ThreadExecutor(3), mode, storage));
    for (float value : alone.log_probability) EXPECT(value <= 1e-2f);
    for (float value : alone.grad_rows) EXPECT(std::isfinite(value));
    for (uint32_t row : alone.rows) EXPECT(row < neurons);
  }
}

// Few terms meet, in another order, and hardly ever is one of them lost.
void test_async_accumulation_is_close() {
  const Batch batch(60, 17, 2000);
  const Results expected = run(batch, 20, 30, SerialExecutor());
  for (int threads : {1, 3}) {
    const Results found = run(batch, 20, 30, ThreadExecutor(threads), Mode::kLsh, Storage::kFloat32,
                              Accumulation::kAsync);
    EXPECT(found.log_probability == expected.log_probability);
    EXPECT(found.grad_hidden == expected.grad_hidden);
    double error = 0, size = 0;
    for (size_t i = 0; i < expected.grad_rows.size(); ++i) {
      const double difference = found.grad_rows[i] - expected.grad_rows[i];
      error += difference * difference;
      size += expected.grad_rows[i] * expected.grad_rows[i];
    }
    EXPECT(error <= (threads == 1 ? 1e-10 : 1e-2) * size);
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

void test_column_kernels_are_the_same_everywhere(int64_t rows, int64_t stride) {
  const std::vector<float> logits = normal_values(rows * stride, 1, 30);
  const std::vector<float> bias = normal_values(rows, 2);
  const std::vector<float> shift = normal_values(stride, 3, 9);
  std::vector<float> drawn(bias.size(), 1.0f);
  drawn.back() = 0.0f;
  struct Outputs {
    std::vector<float> completed, top, values, sums, gradients, row_sums;
    bool operator==(const Outputs&) const = default;
  };
  const auto outputs = [&](Isa isa) {
    const ColumnKernels& kernels = column_kernels(isa);
    Outputs out{logits, std::vector<float>(shift.size(), -1), logits, shift, logits, bias};
    kernels.complete(out.completed.data(), rows, stride, bias.data(), drawn.data(), shift.data(),
                     out.top.data());
    kernels.exponentials(logits.data(), out.values.data(), rows, stride, shift.data(),
                         out.sums.data());
    kernels.gradients(logits.data(), out.gradients.data(), rows, stride, shift.data(), shift.data(),
                      out.row_sums.data());
    return out;
  };
  for (Isa isa : supported_isas()) EXPECT(outputs(isa) == outputs(Isa::kScalar));
}

std::vector<uint16_t> bfloat16_values(int64_t count, unsigned seed) {
  std::vector<uint16_t> values;
  for (float value : normal_values(count, seed)) values.push_back(to_bfloat16(value));
  return values;
}

// Instruction sets round differently within a sum.
void test_bfloat16_products(int64_t m, int64_t n, int64_t k) {
  const std::vector<uint16_t> a = bfloat16_values(m * k, 1), b = bfloat16_values(k * n, 2);
  const std::vector<float> start = normal_values(m * n, 3);
  std::vector<double> expected(start.begin(), start.end());
  for (int64_t i = 0; i < m * n * k; ++i) {
    const int64_t row = i / (n * k), column = i / k % n, depth = i % k;
    const auto left = static_cast<size_t>(row * k + depth);
    const auto right = static_cast<size_t>((depth / 2 * n + column) * 2 + depth % 2);
    expected[static_cast<size_t>(row * n + column)] +=
        static_cast<double>(from_bfloat16(a[left])) * from_bfloat16(b[right]);
  }
  for (Isa isa : supported_isas()) {
    for (bool add : {false, true}) {
      std::vector<float> c = start;
      bfloat16_kernels(isa).multiply(m, n, k, a.data(), k, b.data(), c.data(), n, add);
      for (size_t i = 0; i < c.size(); ++i) {
        const double found = c[i] + (add ? 0.0 : static_cast<double>(start[i]));
        EXPECT(std::abs(found - expected[i]) < 1e-4);
      }
    }
  }
}

void test_bfloat16_layouts(int64_t rows, int64_t columns) {
  const std::vector<float> values = normal_values(rows * columns, 1);
  for (Isa isa : supported_isas()) {
    const BFloat16Kernels& kernels = bfloat16_kernels(isa);
    std::vector<uint16_t> rounded(values.size()), turned(values.size());
    std::vector<uint16_t> pairs(static_cast<size_t>(2 * columns));
    kernels.round(values.data(), rounded.data(), rows * columns);
    kernels.round_transposed(values.data(), columns, rows, columns, turned.data(), rows);
    kernels.interleave(rounded.data(), rounded.data() + columns, pairs.data(), columns);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < columns; ++c) {
        const auto at = static_cast<size_t>(r * columns + c);
        EXPECT(rounded[at] == to_bfloat16(values[at]));
        EXPECT(turned[static_cast<size_t>(c * rows + r)] == rounded[at]);
        if (r < 2) EXPECT(pairs[static_cast<size_t>(2 * c + r)] == rounded[at]);
      }
    }
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
  test_async_accumulation_is_close();
  test_bias_gradients_cancel();
  expect_refused<std::out_of_range>(Batch(4, 5, 40), 40);
  expect_refused<std::invalid_argument>(Batch(4, 5, 40), -1);
  for (int64_t rows : {1, 6, 13}) {
    for (int64_t columns : {1, 16, 65, 150}) {
      for (int64_t depth : {1, 19}) test_kernels_are_the_same_everywhere(rows, columns, depth);
    }
  }
  for (int64_t rows : {1, 7}) test_column_kernels_are_the_same_everywhere(rows, 32 * rows + 16);
  for (int64_t m : {16, 48}) {
    for (int64_t n : {16, 32, 80}) test_bfloat16_products(m, n, 3 * 32);
  }
  test_bfloat16_layouts(64, 48);
}

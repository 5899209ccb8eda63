#include "train/sparse_input.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

#include "train/sparse_input_kernels.h"

namespace qcompile {
namespace {

constexpr int64_t kExampleGrain = 8;
constexpr int64_t kRowGrain = 64;

[[noreturn]] void fail(const std::string& message) { throw std::invalid_argument(message); }

template <typename Index>
void check_offsets(std::span<const Index> offsets, size_t entries) {
  if (offsets.empty() || offsets[0] != 0) fail("the row offsets must begin with 0");
  for (size_t row = 1; row < offsets.size(); ++row) {
    if (offsets[row] < offsets[row - 1]) {
      fail("the row offsets descend at row " + std::to_string(row - 1));
    }
  }
  if (static_cast<uint64_t>(offsets.back()) != entries) {
    fail("the row offsets end at " + std::to_string(offsets.back()) + ", but there are " +
         std::to_string(entries) + " entries");
  }
}

}  // namespace

template <typename Index>
SparseInput::SparseInput(std::span<const Index> offsets, std::span<const Index> columns,
                         std::span<const float> values, int64_t features)
    : features_(features), values_(values.begin(), values.end()) {
  if (features < 1 || features > kMaxFeatures) {
    fail("the number of features must be in [1, 2^31]");
  }
  if (columns.size() != values.size()) {
    fail(std::to_string(columns.size()) + " column indices do not fit " +
         std::to_string(values.size()) + " values");
  }
  if (columns.size() > std::numeric_limits<uint32_t>::max()) {
    fail("more than 2^32 - 1 entries in one batch");
  }
  check_offsets(offsets, values.size());
  offsets_.assign(offsets.begin(), offsets.end());
  columns_.resize(columns.size());
  std::vector<uint32_t> examples(columns.size());
  for (int64_t e = 0; e < this->examples(); ++e) {
    for (int64_t i = offsets_[e]; i < offsets_[e + 1]; ++i) {
      const auto column = static_cast<int64_t>(columns[i]);
      if (column < 0 || column >= features) {
        fail("row " + std::to_string(e) + " has feature " + std::to_string(column) +
             ", expected one from 0 to " + std::to_string(features - 1));
      }
      if (!std::isfinite(values_[i])) {
        fail("row " + std::to_string(e) + ", feature " + std::to_string(column) + ": the value " +
             std::to_string(values_[i]) + " is not finite in float32");
      }
      columns_[i] = static_cast<uint32_t>(column);
      examples[i] = static_cast<uint32_t>(e);
    }
  }
  by_feature_ = group_positions(std::span<const uint32_t>(columns_), features);
  example_of_.reserve(columns_.size());
  value_of_.reserve(columns_.size());
  for (uint32_t position : by_feature_.positions) {
    example_of_.push_back(examples[position]);
    value_of_.push_back(values_[position]);
  }
}

template SparseInput::SparseInput(std::span<const int32_t>, std::span<const int32_t>,
                                  std::span<const float>, int64_t);
template SparseInput::SparseInput(std::span<const int64_t>, std::span<const int64_t>,
                                  std::span<const float>, int64_t);

void SparseInput::forward(const RowsView& weight, const float* bias, float* output,
                          const Executor& executor) const {
  const RowSumKernels& kernels = row_sum_kernels();
  const int64_t depth = weight.depth;
  parallel_for(executor, examples(), kExampleGrain, [&](int64_t begin, int64_t end) {
    for (int64_t e = begin; e < end; ++e) {
      float* sum = output + e * depth;
      if (bias != nullptr) {
        std::copy(bias, bias + depth, sum);
      } else {
        std::fill(sum, sum + depth, 0.0f);
      }
      const int64_t first = offsets_[e];
      const int64_t count = offsets_[e + 1] - first;
      if (weight.storage == Storage::kBFloat16) {
        kernels.of_bfloats(static_cast<const uint16_t*>(weight.data), depth,
                           columns_.data() + first, values_.data() + first, count, sum);
      } else {
        kernels.of_floats(static_cast<const float*>(weight.data), depth, columns_.data() + first,
                          values_.data() + first, count, sum);
      }
    }
  });
}

void SparseInput::gradients(const float* grad_output, int64_t depth, int64_t begin, int64_t end,
                            float* gradients) const {
  std::fill(gradients, gradients + (end - begin) * depth, 0.0f);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t first = by_feature_.offsets[row];
    row_sum_kernels().of_floats(grad_output, depth, example_of_.data() + first,
                                value_of_.data() + first, by_feature_.offsets[row + 1] - first,
                                gradients + (row - begin) * depth);
  }
}

void SparseInput::backward(const float* grad_output, int64_t depth, float* grad_rows,
                           const Executor& executor) const {
  parallel_for(executor, by_feature_.size(), kRowGrain, [&](int64_t begin, int64_t end) {
    gradients(grad_output, depth, begin, end, grad_rows + begin * depth);
  });
}

void SparseInput::bias_gradient(const float* grad_output, int64_t depth, float* grad_bias) const {
  std::fill(grad_bias, grad_bias + depth, 0.0f);
  for (int64_t e = 0; e < examples(); ++e) {
    const float* row = grad_output + e * depth;
    for (int64_t j = 0; j < depth; ++j) grad_bias[j] += row[j];
  }
}

}  // namespace qcompile

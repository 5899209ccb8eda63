#include "train/csr_product.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

#include "train/kernels.h"
#include "train/row_sums.h"

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
CsrProduct::CsrProduct(std::span<const Index> offsets,
                       std::span<const std::type_identity_t<Index>> columns,
                       std::span<const float> values, int64_t features)
    : features_(features) {
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
      if (!std::isfinite(values[i])) {
        fail("row " + std::to_string(e) + ", feature " + std::to_string(column) + ": the value " +
             std::to_string(values[i]) + " is not finite in float32");
      }
      columns_[i] = static_cast<uint32_t>(column);
      examples[i] = static_cast<uint32_t>(e);
    }
  }
  by_feature_ = group_positions(std::span<const uint32_t>(columns_), features);
  example_of_.reserve(columns_.size());
  for (uint32_t position : by_feature_.positions) example_of_.push_back(examples[position]);
  set_values(values);
}

template CsrProduct::CsrProduct(std::span<const int32_t>, std::span<const int32_t>,
                                std::span<const float>, int64_t);
template CsrProduct::CsrProduct(std::span<const int64_t>, std::span<const int64_t>,
                                std::span<const float>, int64_t);

void CsrProduct::forward(const RowsView& weight, const float* bias, float* output,
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

void CsrProduct::gradients(const float* grad_output, int64_t depth, int64_t begin, int64_t end,
                           float* gradients) const {
  std::fill(gradients, gradients + (end - begin) * depth, 0.0f);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t first = by_feature_.offsets[row];
    row_sum_kernels().of_floats(grad_output, depth, example_of_.data() + first,
                                value_of_.data() + first, by_feature_.offsets[row + 1] - first,
                                gradients + (row - begin) * depth);
  }
}

void CsrProduct::backward(const float* grad_output, int64_t depth, float* grad_rows,
                          const Executor& executor) const {
  parallel_for(executor, by_feature_.size(), kRowGrain, [&](int64_t begin, int64_t end) {
    gradients(grad_output, depth, begin, end, grad_rows + begin * depth);
  });
}

void CsrProduct::bias_gradient(const float* grad_output, int64_t depth, float* grad_bias) const {
  std::fill(grad_bias, grad_bias + depth, 0.0f);
  for (int64_t e = 0; e < examples(); ++e) {
    train_kernels().add_scaled(1.0f, grad_output + e * depth, grad_bias, depth);
  }
}

void CsrProduct::products(const float* input, const RowsView& weight, const float* bias,
                          float* products, const Executor& executor) const {
  const TrainKernels& kernels = train_kernels();
  const int64_t depth = weight.depth;
  parallel_for(executor, by_feature_.size(), kRowGrain, [&](int64_t begin, int64_t end) {
    std::vector<float> row(depth);
    for (int64_t group = begin; group < end; ++group) {
      const uint32_t feature = by_feature_.keys[group];
      load_row(weight, feature, row.data());
      for (int64_t i = by_feature_.offsets[group]; i < by_feature_.offsets[group + 1]; ++i) {
        products[by_feature_.positions[i]] =
            kernels.dot(row.data(), input + example_of_[i] * depth, depth) +
            (bias != nullptr ? bias[feature] : 0.0f);
      }
    }
  });
}

void CsrProduct::column_sums(float* sums) const {
  for (int64_t group = 0; group < by_feature_.size(); ++group) {
    float total = 0;
    for (int64_t i = by_feature_.offsets[group]; i < by_feature_.offsets[group + 1]; ++i) {
      total += value_of_[i];
    }
    sums[group] = total;
  }
}

void CsrProduct::set_values(std::span<const float> values) {
  if (values.size() != columns_.size()) {
    fail("expected " + std::to_string(columns_.size()) + " values");
  }
  values_.assign(values.begin(), values.end());
  value_of_.clear();
  for (uint32_t position : by_feature_.positions) value_of_.push_back(values_[position]);
}

}  // namespace qcompile

// A layer whose input is sparse: the product of a CSR batch and a matrix with a row per feature.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/group.h"
#include "core/parallel.h"
#include "train/storage.h"

namespace qcompile {

// One batch in compressed rows, checked and copied when made. A feature may occur several times in
// an example and in any order; its values add up.
class SparseInput {
 public:
  static constexpr int64_t kMaxFeatures = int64_t{1} << 31;

  // offsets [examples + 1], columns and values [offsets.back()]; Index is int32_t or int64_t.
  // Throws std::invalid_argument for offsets that are not ascending from zero to the number of
  // values, a column that is not below `features`, and a value that is not finite.
  template <typename Index>
  SparseInput(std::span<const Index> offsets, std::span<const Index> columns,
              std::span<const float> values, int64_t features);

  int64_t examples() const { return static_cast<int64_t>(offsets_.size()) - 1; }
  int64_t features() const { return features_; }

  // The features that occur, ascending: the rows that backward() writes.
  const std::vector<uint32_t>& rows() const { return by_feature_.keys; }

  // output [examples, weight.depth] = batch · weight [features, depth] + bias [depth] or null.
  void forward(const RowsView& weight, const float* bias, float* output,
               const Executor& executor) const;

  // Gradients [end - begin, depth] of rows()[begin … end), from those of the output
  // [examples, depth]. Each sum has one owner and the order of the examples.
  void gradients(const float* grad_output, int64_t depth, int64_t begin, int64_t end,
                 float* gradients) const;

  // Gradients of all rows [rows().size(), depth].
  void backward(const float* grad_output, int64_t depth, float* grad_rows,
                const Executor& executor) const;

  // The sum over examples [depth], in their order: the gradient of a bias.
  void bias_gradient(const float* grad_output, int64_t depth, float* grad_bias) const;

 private:
  int64_t features_;
  std::vector<int64_t> offsets_;   // [examples + 1]
  std::vector<uint32_t> columns_;  // [entries] feature
  std::vector<float> values_;      // [entries]
  Groups by_feature_;
  // In the order of by_feature_.positions:
  std::vector<uint32_t> example_of_;
  std::vector<float> value_of_;
};

}  // namespace qcompile

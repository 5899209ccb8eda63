// Products of a sparse batch in compressed rows (CSR) with dense matrices.
#pragma once

#include <cstdint>
#include <span>
#include <type_traits>
#include <vector>

#include "core/group.h"
#include "core/parallel.h"
#include "train/storage.h"

namespace qcompile {

// A sparse matrix S [examples, features], checked and copied when made. A feature may occur several
// times in an example and in any order; its values add up. Each sum has one owner and a fixed
// order, so that results are the same for every executor and instruction set.
class CsrProduct {
 public:
  static constexpr int64_t kMaxFeatures = int64_t{1} << 31;

  // offsets [examples + 1], columns and values [offsets.back()]; Index is int32_t or int64_t.
  // Throws std::invalid_argument for offsets that are not ascending from zero to the number of
  // values, a column that is not below `features`, and a value that is not finite.
  template <typename Index>
  CsrProduct(std::span<const Index> offsets, std::span<const std::type_identity_t<Index>> columns,
             std::span<const float> values, int64_t features);

  int64_t examples() const { return static_cast<int64_t>(offsets_.size()) - 1; }
  int64_t features() const { return features_; }
  int64_t entries() const { return static_cast<int64_t>(columns_.size()); }

  // The features that occur, ascending.
  const std::vector<uint32_t>& rows() const { return by_feature_.keys; }

  // Replaces the values [entries()], by anything.
  void set_values(std::span<const float> values);

  // output [examples, depth] = S · weight [features, depth] + bias [depth] or null.
  void forward(const RowsView& weight, const float* bias, float* output,
               const Executor& executor) const;

  // Of Sᵀ · grad_output [examples, depth], those rows that rows() names:
  // grad_rows [rows().size(), depth].
  void backward(const float* grad_output, int64_t depth, float* grad_rows,
                const Executor& executor) const;

  // The part of the same for rows()[begin … end): gradients [end - begin, depth].
  void gradients(const float* grad_output, int64_t depth, int64_t begin, int64_t end,
                 float* gradients) const;

  // The sum over examples [depth], in their order: the gradient of a bias of forward().
  void bias_gradient(const float* grad_output, int64_t depth, float* grad_bias) const;

  // Where S has entries, input [examples, depth] · weightᵀ + bias [features] or null:
  // products [entries()]. The values of S do not matter.
  void products(const float* input, const RowsView& weight, const float* bias, float* products,
                const Executor& executor) const;

  // The sum of the values of each feature in rows(): sums [rows().size()].
  void column_sums(float* sums) const;

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

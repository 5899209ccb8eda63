// Output layers as Python hands them over.
#pragma once

#include <string>

#include "core/isa.h"
#include "index/head.h"
#include "python/arrays.h"

namespace qcompile {

inline Isa choose(const std::string& isa) {
  return isa == "auto" ? best_matrix_isa() : parse_isa(isa);
}

inline Dense dense_from(const ArrayIn<float>& weight, const ArrayIn<float>& bias) {
  require_shape("weight", weight, {-1, -1});
  if (weight.size() == 0) raise_data_error("weight: expected a non-empty matrix [N, d]");
  const auto rows = static_cast<int64_t>(weight.shape(0));
  require_shape("bias", bias, {rows});
  return {weight.data(), bias.data(), rows, static_cast<int64_t>(weight.shape(1))};
}

}  // namespace qcompile

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

// Rows in float32, in bfloat16 as uint16, or none [0, d], where packed rows stand for them.
using LayerRows = nanobind::ndarray<nanobind::ro, nanobind::c_contig, nanobind::device::cpu>;

inline Dense layer_from(const LayerRows& weight, const ArrayIn<float>& bias) {
  require_shape("weight", weight, {-1, -1});
  require_shape("bias", bias, {-1});
  const auto rows = static_cast<int64_t>(bias.shape(0));
  const auto depth = static_cast<int64_t>(weight.shape(1));
  if (rows == 0 || depth == 0) raise_data_error("weight: expected a non-empty matrix [N, d]");
  Dense dense{nullptr, bias.data(), rows, depth};
  if (weight.shape(0) == 0) return dense;
  require_shape("bias", bias, {static_cast<int64_t>(weight.shape(0))});
  if (weight.dtype() == nanobind::dtype<float>()) {
    dense.weight = static_cast<const float*>(weight.data());
  } else if (weight.dtype() == nanobind::dtype<uint16_t>()) {
    dense.half = static_cast<const uint16_t*>(weight.data());
  } else {
    raise_data_error("weight: expected float32, or bfloat16 as uint16");
  }
  return dense;
}

inline Packed packed_from(const Dense& dense, const ArrayIn<uint8_t>& packed,
                          const ArrayIn<float>& scale, const ArrayIn<float>& error) {
  const int64_t blocks = block_count(dense.rows);
  const int64_t pairs = pair_count(step_count(dense.depth));
  const bool alone = dense.weight == nullptr && dense.half == nullptr;
  const bool rough = !alone && packed.ndim() > 0 && packed.shape(0) == 1;
  require_shape("packed", packed, {rough ? 1 : 2, blocks, pairs, kBlockRows, kBlockDepth});
  require_shape("scale", scale, {dense.rows});
  require_shape("error", error, {dense.rows});
  const uint8_t* low = rough ? nullptr : packed.data() + blocks * plane_bytes(dense.depth);
  return {packed.data(), low, scale.data(), error.data()};
}

}  // namespace qcompile

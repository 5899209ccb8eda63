// Weight matrices of NumPy and torch at the boundary to Python, in each type that they are stored.
#pragma once

#include "python/arrays.h"
#include "train/storage.h"

namespace qcompile {

using RowsIn = nanobind::ndarray<nanobind::ro, nanobind::c_contig, nanobind::device::cpu>;

// How the elements are stored; they must be float32 or bfloat16.
inline Storage storage_of(const char* name, const RowsIn& array) {
  const nanobind::dlpack::dtype type = array.dtype();
  const bool bfloat = type.code == static_cast<uint8_t>(nanobind::dlpack::dtype_code::Bfloat) &&
                      type.bits == 16 && type.lanes == 1;
  if (!bfloat && type != nanobind::dtype<float>()) {
    raise_data_error(std::string(name) + ": expected the type float32 or bfloat16");
  }
  return bfloat ? Storage::kBFloat16 : Storage::kFloat32;
}

// The matrix [rows, depth] in float32 or bfloat16; −1 rows stand for any number.
inline RowsView rows_view(const char* name, const RowsIn& array, int64_t rows) {
  require_shape(name, array, {rows, -1});
  return {.data = array.data(),
          .storage = storage_of(name, array),
          .depth = static_cast<int64_t>(array.shape(1))};
}

}  // namespace qcompile

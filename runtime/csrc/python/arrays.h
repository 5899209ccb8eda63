// Arrays of NumPy and torch at the boundary to Python, and errors crossing it.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <initializer_list>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace qcompile {

template <typename T>
using ArrayIn = nanobind::ndarray<const T, nanobind::c_contig, nanobind::device::cpu>;
template <typename T>
using ArrayInOut = nanobind::ndarray<T, nanobind::c_contig, nanobind::device::cpu>;
template <typename T>
using ArrayOut = nanobind::ndarray<nanobind::numpy, T, nanobind::c_contig>;

[[noreturn]] inline void raise_data_error(const std::string& message) {
  const nanobind::object type = nanobind::module_::import_("qcompile.errors").attr("DataError");
  PyErr_SetString(type.ptr(), message.c_str());
  throw nanobind::python_error();
}

// Runs `body` without the GIL; what it throws about its arguments becomes a DataError.
template <typename F>
auto without_gil(F&& body) {
  std::string message;
  try {
    const nanobind::gil_scoped_release release;
    return body();
  } catch (const std::logic_error& error) {
    message = error.what();
  }
  raise_data_error(message);
}

// Requires an array of this shape; −1 stands for any extent.
template <typename Array>
void require_shape(const char* name, const Array& array, std::initializer_list<int64_t> shape) {
  bool same = array.ndim() == shape.size();
  std::string expected;
  size_t axis = 0;
  for (int64_t extent : shape) {
    same = same && (extent < 0 || static_cast<int64_t>(array.shape(axis)) == extent);
    expected += (axis++ ? ", " : "") + (extent < 0 ? "any" : std::to_string(extent));
  }
  if (!same) raise_data_error(std::string(name) + ": expected the shape [" + expected + "]");
}

template <typename T>
ArrayOut<T> to_array(std::vector<T> values, std::initializer_list<size_t> shape) {
  auto kept = std::make_unique<std::vector<T>>(std::move(values));
  T* data = kept->data();
  nanobind::capsule owner(kept.release(),
                          [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); });
  return ArrayOut<T>(data, shape, owner);
}

template <typename T>
ArrayOut<T> to_array(std::vector<T> values) {
  const size_t size = values.size();
  return to_array(std::move(values), {size});
}

}  // namespace qcompile

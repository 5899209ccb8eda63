#include <nanobind/stl/optional.h>

#include <optional>

#include "python/arrays.h"
#include "python/module.h"
#include "python/rows.h"
#include "train/row_optimizer.h"
#include "train/sparse_input.h"

namespace nb = nanobind;

namespace qcompile {
namespace {

template <typename T>
std::span<const T> span_of(const char* name, const ArrayIn<T>& array) {
  require_shape(name, array, {-1});
  return {array.data(), array.shape(0)};
}

template <typename Index>
void make(SparseInput* self, ArrayIn<Index> offsets, ArrayIn<Index> columns, ArrayIn<float> values,
          int64_t features) {
  const auto rows = span_of("offsets", offsets);
  const auto ids = span_of("columns", columns);
  const auto entries = span_of("values", values);
  without_gil([&] { new (self) SparseInput(rows, ids, entries, features); });
}

int64_t check_gradient(const SparseInput& input, const ArrayIn<float>& grad_output) {
  require_shape("grad_output", grad_output, {input.examples(), -1});
  return static_cast<int64_t>(grad_output.shape(1));
}

void forward(const SparseInput& input, RowsIn weight, std::optional<ArrayIn<float>> bias,
             ArrayInOut<float> output, int threads) {
  const RowsView rows = rows_view("weight", weight, input.features());
  if (bias) require_shape("bias", *bias, {rows.depth});
  require_shape("output", output, {input.examples(), rows.depth});
  without_gil([&] {
    input.forward(rows, bias ? bias->data() : nullptr, output.data(), OpenMPExecutor(threads));
  });
}

void backward(const SparseInput& input, ArrayIn<float> grad_output, ArrayInOut<float> grad_rows,
              int threads) {
  const int64_t depth = check_gradient(input, grad_output);
  require_shape("grad_rows", grad_rows, {static_cast<int64_t>(input.rows().size()), depth});
  without_gil([&] {
    input.backward(grad_output.data(), depth, grad_rows.data(), OpenMPExecutor(threads));
  });
}

void bias_gradient(const SparseInput& input, ArrayIn<float> grad_output,
                   ArrayInOut<float> grad_bias) {
  const int64_t depth = check_gradient(input, grad_output);
  require_shape("grad_bias", grad_bias, {depth});
  without_gil([&] { input.bias_gradient(grad_output.data(), depth, grad_bias.data()); });
}

void require_rows(const SparseInput& input, const RowOptimizer& optimizer) {
  if (optimizer.rows() != input.features()) {
    raise_data_error("the optimiser has " + std::to_string(optimizer.rows()) +
                     " rows, the input layer " + std::to_string(input.features()));
  }
}

void catch_up(const SparseInput& input, RowOptimizer& weight, int threads) {
  require_rows(input, weight);
  without_gil([&] { weight.catch_up(input.rows(), OpenMPExecutor(threads)); });
}

void update(const SparseInput& input, ArrayIn<float> grad_output, RowOptimizer& weight,
            int threads) {
  const int64_t depth = check_gradient(input, grad_output);
  require_rows(input, weight);
  if (weight.depth() != depth) {
    raise_data_error("the optimiser's rows are " + std::to_string(weight.depth()) +
                     " wide, the gradient's " + std::to_string(depth));
  }
  const float* gradient = grad_output.data();
  without_gil([&] {
    weight.step(
        input.rows(),
        [&](int64_t begin, int64_t end, float* gradients) {
          input.gradients(gradient, depth, begin, end, gradients);
        },
        OpenMPExecutor(threads));
  });
}

ArrayOut<int64_t> rows(const SparseInput& input) {
  return to_array(std::vector<int64_t>(input.rows().begin(), input.rows().end()));
}

}  // namespace

void bind_input(nb::module_& module) {
  nb::class_<SparseInput>(module, "SparseInput", "A CSR batch and its product with a matrix.")
      .def("__init__", &make<int32_t>, nb::arg("offsets").noconvert(),
           nb::arg("columns").noconvert(), nb::arg("values").noconvert(), nb::arg("features"))
      .def("__init__", &make<int64_t>, nb::arg("offsets").noconvert(),
           nb::arg("columns").noconvert(), nb::arg("values").noconvert(), nb::arg("features"))
      .def_prop_ro("examples", &SparseInput::examples, "B.")
      .def_prop_ro("rows", &rows, nb::rv_policy::move, "int64 [R]: the features that occur.")
      .def("forward", &forward, nb::arg("weight").noconvert(), nb::arg("bias").noconvert().none(),
           nb::arg("output").noconvert(), nb::arg("threads") = 0,
           "output [B, d] = batch · weight [F, d] + bias [d].")
      .def("backward", &backward, nb::arg("grad_output").noconvert(),
           nb::arg("grad_rows").noconvert(), nb::arg("threads") = 0,
           "Gradients [R, d] of the rows of the weight.")
      .def("bias_gradient", &bias_gradient, nb::arg("grad_output").noconvert(),
           nb::arg("grad_bias").noconvert(), "The gradient [d] of the bias.")
      .def("catch_up", &catch_up, nb::arg("weight"), nb::arg("threads") = 0,
           "Bring the rows that occur to the optimiser's present step.")
      .def("update", &update, nb::arg("grad_output").noconvert(), nb::arg("weight"),
           nb::arg("threads") = 0, "One step of the optimiser with the gradients of the rows.");
}

}  // namespace qcompile

#include <nanobind/stl/optional.h>

#include <optional>

#include "python/arrays.h"
#include "python/module.h"
#include "python/rows.h"
#include "train/csr_product.h"
#include "train/row_optimizer.h"

namespace nb = nanobind;

namespace qcompile {
namespace {

template <typename T>
std::span<const T> span_of(const char* name, const ArrayIn<T>& array) {
  require_shape(name, array, {-1});
  return {array.data(), array.shape(0)};
}

template <typename Index>
void make(CsrProduct* self, ArrayIn<Index> offsets, ArrayIn<Index> columns, ArrayIn<float> values,
          int64_t features) {
  const auto rows = span_of("offsets", offsets);
  const auto ids = span_of("columns", columns);
  const auto entries = span_of("values", values);
  without_gil([&] { new (self) CsrProduct(rows, ids, entries, features); });
}

int64_t check_gradient(const CsrProduct& csr, const ArrayIn<float>& grad_output) {
  require_shape("grad_output", grad_output, {csr.examples(), -1});
  return static_cast<int64_t>(grad_output.shape(1));
}

void forward(const CsrProduct& csr, RowsIn weight, std::optional<ArrayIn<float>> bias,
             ArrayInOut<float> output, int threads) {
  const RowsView rows = rows_view("weight", weight, csr.features());
  if (bias) require_shape("bias", *bias, {rows.depth});
  require_shape("output", output, {csr.examples(), rows.depth});
  without_gil([&] {
    csr.forward(rows, bias ? bias->data() : nullptr, output.data(), OpenMPExecutor(threads));
  });
}

void backward(const CsrProduct& csr, ArrayIn<float> grad_output, ArrayInOut<float> grad_rows,
              int threads) {
  const int64_t depth = check_gradient(csr, grad_output);
  require_shape("grad_rows", grad_rows, {static_cast<int64_t>(csr.rows().size()), depth});
  without_gil(
      [&] { csr.backward(grad_output.data(), depth, grad_rows.data(), OpenMPExecutor(threads)); });
}

void bias_gradient(const CsrProduct& csr, ArrayIn<float> grad_output, ArrayInOut<float> grad_bias) {
  const int64_t depth = check_gradient(csr, grad_output);
  require_shape("grad_bias", grad_bias, {depth});
  without_gil([&] { csr.bias_gradient(grad_output.data(), depth, grad_bias.data()); });
}

void products(const CsrProduct& csr, ArrayIn<float> input, RowsIn weight,
              std::optional<ArrayIn<float>> bias, ArrayInOut<float> values, int threads) {
  const RowsView rows = rows_view("weight", weight, csr.features());
  require_shape("input", input, {csr.examples(), rows.depth});
  if (bias) require_shape("bias", *bias, {csr.features()});
  require_shape("values", values, {csr.entries()});
  without_gil([&] {
    csr.products(input.data(), rows, bias ? bias->data() : nullptr, values.data(),
                 OpenMPExecutor(threads));
  });
}

void set_values(CsrProduct& csr, ArrayIn<float> values) {
  const auto span = span_of("values", values);
  without_gil([&] { csr.set_values(span); });
}

ArrayOut<float> column_sums(const CsrProduct& csr) {
  std::vector<float> sums(csr.rows().size());
  csr.column_sums(sums.data());
  return to_array(std::move(sums));
}

void require_rows(const CsrProduct& csr, const RowOptimizer& optimizer) {
  if (optimizer.rows() != csr.features()) {
    raise_data_error("the optimiser has " + std::to_string(optimizer.rows()) +
                     " rows, the batch features " + std::to_string(csr.features()));
  }
}

void catch_up(const CsrProduct& csr, RowOptimizer& weight, int threads) {
  require_rows(csr, weight);
  without_gil([&] { weight.catch_up(csr.rows(), OpenMPExecutor(threads)); });
}

void update(const CsrProduct& csr, ArrayIn<float> grad_output, RowOptimizer& weight, int threads) {
  const int64_t depth = check_gradient(csr, grad_output);
  require_rows(csr, weight);
  if (weight.depth() != depth) {
    raise_data_error("the optimiser's rows are " + std::to_string(weight.depth()) +
                     " wide, the gradient's " + std::to_string(depth));
  }
  const float* gradient = grad_output.data();
  without_gil([&] {
    weight.step(
        csr.rows(),
        [&](int64_t begin, int64_t end, float* gradients) {
          csr.gradients(gradient, depth, begin, end, gradients);
        },
        OpenMPExecutor(threads));
  });
}

ArrayOut<int64_t> rows(const CsrProduct& csr) {
  return to_array(std::vector<int64_t>(csr.rows().begin(), csr.rows().end()));
}

}  // namespace

void bind_csr(nb::module_& module) {
  nb::class_<CsrProduct>(module, "CsrProduct",
                         "A CSR batch [B, F] and its products with dense matrices.")
      .def("__init__", &make<int32_t>, nb::arg("offsets").noconvert(),
           nb::arg("columns").noconvert(), nb::arg("values").noconvert(), nb::arg("features"))
      .def("__init__", &make<int64_t>, nb::arg("offsets").noconvert(),
           nb::arg("columns").noconvert(), nb::arg("values").noconvert(), nb::arg("features"))
      .def_prop_ro("examples", &CsrProduct::examples, "B.")
      .def_prop_ro("rows", &rows, nb::rv_policy::move, "int64 [R]: the features that occur.")
      .def("forward", &forward, nb::arg("weight").noconvert(), nb::arg("bias").noconvert().none(),
           nb::arg("output").noconvert(), nb::arg("threads") = 0,
           "output [B, d] = batch · weight [F, d] + bias [d].")
      .def("backward", &backward, nb::arg("grad_output").noconvert(),
           nb::arg("grad_rows").noconvert(), nb::arg("threads") = 0,
           "Gradients [R, d] of the rows of the weight.")
      .def("bias_gradient", &bias_gradient, nb::arg("grad_output").noconvert(),
           nb::arg("grad_bias").noconvert(), "The gradient [d] of the bias of forward.")
      .def("products", &products, nb::arg("input").noconvert(), nb::arg("weight").noconvert(),
           nb::arg("bias").noconvert().none(), nb::arg("values").noconvert(),
           nb::arg("threads") = 0,
           "Where the batch has entries, input [B, d] · weightᵀ + bias [F]: values [E].")
      .def("set_values", &set_values, nb::arg("values").noconvert(),
           "Replace the values float32 [E].")
      .def("column_sums", &column_sums, nb::rv_policy::move,
           "float32 [R]: the sum of the values of each feature that occurs.")
      .def("catch_up", &catch_up, nb::arg("weight"), nb::arg("threads") = 0,
           "Bring the rows that occur to the optimiser's present step.")
      .def("update", &update, nb::arg("grad_output").noconvert(), nb::arg("weight"),
           nb::arg("threads") = 0, "One step of the optimiser with the gradients of the rows.");
}

}  // namespace qcompile

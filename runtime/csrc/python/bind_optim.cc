#include <nanobind/stl/optional.h>

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "lsh/tables.h"
#include "python/arrays.h"
#include "python/module.h"
#include "train/row_adam.h"
#include "train/row_sgd.h"

namespace nb = nanobind;

namespace qcompile {
namespace {

using AnyArray = nb::ndarray<nb::c_contig, nb::device::cpu>;

constexpr nb::dlpack::dtype kBFloat16Type{static_cast<uint8_t>(nb::dlpack::dtype_code::Bfloat), 16,
                                          1};

// Requires a matrix [rows, depth] of one type.
void require_matrix(const char* name, const AnyArray& array, int64_t rows, int64_t depth,
                    nb::dlpack::dtype type) {
  require_shape(name, array, {rows, depth});
  if (array.dtype() != type) raise_data_error(std::string(name) + ": not of the expected type");
}

RowMatrix matrix_from(int64_t rows, const AnyArray& value,
                      const std::optional<AnyArray>& residual) {
  require_shape("value", value, {rows, -1});
  const auto depth = static_cast<int64_t>(value.shape(1));
  const bool whole = value.dtype() == nb::dtype<float>();
  require_matrix("value", value, rows, depth, whole ? nb::dtype<float>() : kBFloat16Type);
  if (whole == residual.has_value()) {
    raise_data_error("residual: needed for bfloat16 and for nothing else");
  }
  if (whole) return {value.data(), nullptr, rows, depth, Storage::kFloat32};
  require_matrix("residual", *residual, rows, depth, nb::dtype<int16_t>());
  return {value.data(), static_cast<int16_t*>(residual->data()), rows, depth, Storage::kBFloat16};
}

// Keeps arrays for as long as their memory may be written.
template <typename Rule>
class PyBound : public BoundRows<Rule> {
 public:
  PyBound(LateRows<Rule>& late, Rule rule, std::vector<AnyArray> arrays)
      : BoundRows<Rule>(late, std::move(rule)), arrays_(std::move(arrays)) {}

 private:
  std::vector<AnyArray> arrays_;
};

PyBound<AdamRule>* bind_adam(RowAdam& adam, AnyArray value, std::optional<AnyArray> residual,
                             AnyArray first, AnyArray second, double learning_rate, double beta1,
                             double beta2, double epsilon, double weight_decay) {
  const RowMatrix weight = matrix_from(adam.rows(), value, residual);
  require_matrix("first moment", first, weight.rows, weight.depth, value.dtype());
  require_matrix("second moment", second, weight.rows, weight.depth, value.dtype());
  std::vector<AnyArray> arrays{value, first, second};
  if (residual) arrays.push_back(*residual);
  return new PyBound<AdamRule>(
      adam,
      {{weight, first.data(), second.data()}, {learning_rate, beta1, beta2, epsilon, weight_decay}},
      std::move(arrays));
}

PyBound<SgdRule>* bind_sgd(RowSgd& sgd, AnyArray value, std::optional<AnyArray> residual,
                           std::optional<AnyArray> buffer, double learning_rate, double momentum,
                           double weight_decay) {
  const RowMatrix weight = matrix_from(sgd.rows(), value, residual);
  if (buffer) {
    require_matrix("momentum buffer", *buffer, weight.rows, weight.depth, value.dtype());
  } else if (momentum != 0) {
    raise_data_error("momentum buffer: needed for momentum");
  }
  std::vector<AnyArray> arrays{value};
  if (residual) arrays.push_back(*residual);
  if (buffer) arrays.push_back(*buffer);
  return new PyBound<SgdRule>(
      sgd, {{weight, buffer ? buffer->data() : nullptr}, {learning_rate, momentum, weight_decay}},
      std::move(arrays));
}

void catch_up(RowOptimizer& optimizer, ArrayIn<int64_t> ids, int threads) {
  require_shape("ids", ids, {-1});
  without_gil([&] {
    std::vector<uint32_t> distinct(ids.size());
    for (size_t i = 0; i < distinct.size(); ++i) {
      const int64_t id = ids.data()[i];
      if (id < 0 || id >= optimizer.rows()) {
        throw std::out_of_range("row " + std::to_string(id) + " is not below " +
                                std::to_string(optimizer.rows()));
      }
      distinct[i] = static_cast<uint32_t>(id);
    }
    std::sort(distinct.begin(), distinct.end());
    distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
    optimizer.catch_up(distinct, OpenMPExecutor(threads));
  });
}

void step(RowOptimizer& optimizer, ArrayIn<int64_t> ids, ArrayIn<float> gradients, int threads) {
  require_shape("ids", ids, {-1});
  require_shape("gradients", gradients, {static_cast<int64_t>(ids.shape(0)), optimizer.depth()});
  without_gil([&] {
    step_repeated(optimizer, {ids.data(), ids.shape(0)}, gradients.data(), OpenMPExecutor(threads));
  });
}

// `Rows` is RowAdam or RowSgd.
template <typename Rows>
nb::class_<Rows> bind_rows(nb::module_& module, const char* name, const char* description) {
  return nb::class_<Rows>(module, name, description)
      .def(
          "__init__",
          [](Rows* self, int64_t rows, int64_t steps, bool rest) {
            if (rows < 0 || rows > LshTables::kMaxRows || steps < 0) {
              raise_data_error("rows must be in [0, 2^31] and steps at least 0");
            }
            new (self) Rows(rows, steps, rest ? IdleRows::kRest : IdleRows::kCatchUp);
          },
          nb::arg("rows"), nb::arg("steps") = 0, nb::arg("rest") = false)
      .def_prop_ro("steps", &Rows::steps, "Steps taken so far.")
      .def_prop_ro("pending", &Rows::pending, "Latest steps that some rows may not have followed.")
      .def("finish_step", &Rows::finish_step, "Let the next step be taken.");
}

}  // namespace

void bind_optim(nb::module_& module) {
  nb::class_<RowOptimizer>(module, "RowOptimizer",
                           "An optimiser bound to a parameter and its state, for one step.")
      .def_prop_ro("rows", &RowOptimizer::rows)
      .def_prop_ro("depth", &RowOptimizer::depth)
      .def("catch_up", &catch_up, nb::arg("ids").noconvert(), nb::arg("threads") = 0,
           "Bring rows int64 [n], which may repeat, to the present step.")
      .def("step", &step, nb::arg("ids").noconvert(), nb::arg("gradients").noconvert(),
           nb::arg("threads") = 0,
           "One step with gradients float32 [n, d] of rows ids int64 [n], which may repeat.")
      .def(
          "flush",
          [](RowOptimizer& optimizer, int threads) {
            without_gil([&] { optimizer.flush(OpenMPExecutor(threads)); });
          },
          nb::arg("threads") = 0, "Bring every row to the present step.");
  nb::class_<PyBound<AdamRule>, RowOptimizer>(module, "BoundAdam");
  nb::class_<PyBound<SgdRule>, RowOptimizer>(module, "BoundSgd");
  bind_rows<RowAdam>(module, "RowAdam", "The steps of Adam that rows of a parameter followed.")
      .def("bind", &bind_adam, nb::keep_alive<0, 1>(), nb::rv_policy::take_ownership,
           nb::arg("value").noconvert(), nb::arg("residual").noconvert().none(),
           nb::arg("first").noconvert(), nb::arg("second").noconvert(), nb::arg("learning_rate"),
           nb::arg("beta1"), nb::arg("beta2"), nb::arg("epsilon"), nb::arg("weight_decay") = 0.0,
           "Bind to a parameter [rows, d] and its moments, float32, or bfloat16 with residual.");
  bind_rows<RowSgd>(module, "RowSgd", "The steps of SGD that rows of a parameter followed.")
      .def("bind", &bind_sgd, nb::keep_alive<0, 1>(), nb::rv_policy::take_ownership,
           nb::arg("value").noconvert(), nb::arg("residual").noconvert().none(),
           nb::arg("buffer").noconvert().none(), nb::arg("learning_rate"), nb::arg("momentum"),
           nb::arg("weight_decay"),
           "Bind to a parameter [rows, d] and its momentum buffer, None without momentum.");
}

}  // namespace qcompile

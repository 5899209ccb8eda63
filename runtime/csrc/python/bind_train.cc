#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <optional>

#include "python/arrays.h"
#include "python/module.h"
#include "train/row_adam.h"
#include "train/sparse_softmax.h"

namespace nb = nanobind;

namespace qcompile {
namespace {

ActiveSet sample(const LshTables* tables, ArrayIn<float> hidden, ArrayIn<int64_t> labels,
                 int64_t neurons, int64_t active, int64_t negatives, uint64_t seed, uint64_t step,
                 int threads) {
  require_shape("labels", labels, {static_cast<int64_t>(hidden.shape(0)), -1});
  if (tables != nullptr) {
    if (!tables->built()) raise_data_error("the hash tables are empty: call build first");
    require_shape("hidden", hidden, {-1, tables->options().dimension});
    if (tables->options().rows != neurons) {
      raise_data_error("the hash tables hold " + std::to_string(tables->options().rows) +
                       " rows, the layer has " + std::to_string(neurons));
    }
  }
  return without_gil([&] {
    return sample_active(
        tables, hidden.data(),
        {.ids = labels.data(),
         .examples = static_cast<int64_t>(labels.shape(0)),
         .width = static_cast<int64_t>(labels.shape(1))},
        {.neurons = neurons, .active = active, .negatives = negatives, .seed = seed, .step = step},
        OpenMPExecutor(threads));
  });
}

// A batch in Python; the arrays come from the caller at each call and are not kept.
class PySoftmax {
 public:
  PySoftmax(const LshTables* tables, ArrayIn<float> hidden, ArrayIn<int64_t> labels,
            int64_t neurons, int64_t active, int64_t negatives, uint64_t seed, uint64_t step,
            int threads)
      : depth_(static_cast<int64_t>(hidden.shape(hidden.ndim() - 1))),
        neurons_(neurons),
        threads_(threads),
        softmax_(sample(tables, hidden, labels, neurons, active, negatives, seed, step, threads)) {}

  ArrayOut<float> forward(ArrayIn<float> hidden, ArrayIn<float> weight,
                          std::optional<ArrayIn<float>> bias) {
    const OutputLayer layer = layer_from(hidden, weight, bias);
    std::vector<float> log_probability(softmax_.set().examples);
    without_gil([&] {
      softmax_.forward(hidden.data(), layer, log_probability.data(), OpenMPExecutor(threads_));
    });
    return to_array(std::move(log_probability));
  }

  void backward(ArrayIn<float> hidden, ArrayIn<float> weight, ArrayIn<float> scale,
                ArrayInOut<float> grad_hidden, ArrayInOut<float> grad_rows,
                ArrayInOut<float> grad_bias) {
    const OutputLayer layer = layer_from(hidden, weight, std::nullopt);
    require_shape("scale", scale, {softmax_.set().examples});
    require_shape("grad_hidden", grad_hidden, {softmax_.set().examples, depth_});
    require_shape("grad_rows", grad_rows, {softmax_.rows(), depth_});
    require_shape("grad_bias", grad_bias, {softmax_.rows()});
    without_gil([&] {
      softmax_.backward(hidden.data(), layer, scale.data(), grad_hidden.data(), grad_rows.data(),
                        grad_bias.data(), OpenMPExecutor(threads_));
    });
  }

  ArrayOut<int64_t> rows() const {
    std::vector<int64_t> ids(softmax_.rows());
    softmax_.row_ids(ids.data());
    return to_array(std::move(ids));
  }
  ArrayOut<uint32_t> shared() const { return to_array(softmax_.set().shared); }
  ArrayOut<float> correction() const { return to_array(softmax_.set().correction); }
  nb::list own() const {
    const ActiveSet& set = softmax_.set();
    nb::list lists;
    for (int64_t e = 0; e < set.examples; ++e) {
      lists.append(to_array(std::vector<uint32_t>(set.own.begin() + set.own_offsets[e],
                                                  set.own.begin() + set.own_offsets[e + 1])));
    }
    return lists;
  }

 private:
  OutputLayer layer_from(const ArrayIn<float>& hidden, const ArrayIn<float>& weight,
                         const std::optional<ArrayIn<float>>& bias) const {
    require_shape("hidden", hidden, {softmax_.set().examples, depth_});
    require_shape("weight", weight, {neurons_, depth_});
    if (bias) require_shape("bias", *bias, {neurons_});
    return {weight.data(), bias ? bias->data() : nullptr, depth_};
  }

  int64_t depth_;
  int64_t neurons_;
  int threads_;
  SparseSoftmax softmax_;
};

AdamMatrix matrix_from(const RowAdam& adam, const ArrayInOut<float>& value,
                       const ArrayInOut<float>& first, const ArrayInOut<float>& second) {
  require_shape("value", value, {adam.rows(), -1});
  const auto depth = static_cast<int64_t>(value.shape(1));
  require_shape("first moment", first, {adam.rows(), depth});
  require_shape("second moment", second, {adam.rows(), depth});
  return {value.data(), first.data(), second.data(), depth};
}

void adam_step(RowAdam& adam, ArrayInOut<float> value, ArrayInOut<float> first,
               ArrayInOut<float> second, ArrayIn<int64_t> ids, ArrayIn<float> gradients,
               double learning_rate, double beta1, double beta2, double epsilon, int threads) {
  const AdamMatrix matrix = matrix_from(adam, value, first, second);
  require_shape("ids", ids, {-1});
  require_shape("gradients", gradients, {static_cast<int64_t>(ids.shape(0)), matrix.depth});
  without_gil([&] {
    adam.step(matrix, {ids.data(), ids.shape(0)}, gradients.data(),
              {learning_rate, beta1, beta2, epsilon}, OpenMPExecutor(threads));
  });
}

void adam_flush(RowAdam& adam, ArrayInOut<float> value, ArrayInOut<float> first,
                ArrayInOut<float> second, int threads) {
  const AdamMatrix matrix = matrix_from(adam, value, first, second);
  without_gil([&] { adam.flush(matrix, OpenMPExecutor(threads)); });
}

RowAdam make_adam(int64_t rows, int64_t steps) {
  if (rows < 0 || rows > LshTables::kMaxRows || steps < 0) {
    raise_data_error("RowAdam: rows must be in [0, 2^31] and steps at least 0");
  }
  return RowAdam(rows, steps);
}

}  // namespace

void bind_train(nb::module_& module) {
  nb::class_<PySoftmax>(module, "SparseSoftmax",
                        "Softmax over the active neurons of one batch: sampled when made.")
      .def(nb::init<const LshTables*, ArrayIn<float>, ArrayIn<int64_t>, int64_t, int64_t, int64_t,
                    uint64_t, uint64_t, int>(),
           nb::arg("tables").none(), nb::arg("hidden").noconvert(), nb::arg("labels").noconvert(),
           nb::arg("neurons"), nb::arg("active"), nb::arg("negatives"), nb::arg("seed"),
           nb::arg("step"), nb::arg("threads") = 0)
      .def("forward", &PySoftmax::forward, nb::arg("hidden").noconvert(),
           nb::arg("weight").noconvert(), nb::arg("bias").noconvert().none(),
           "Log-probability float32 [B]: the mean over each example's labels.")
      .def("backward", &PySoftmax::backward, nb::arg("hidden").noconvert(),
           nb::arg("weight").noconvert(), nb::arg("scale").noconvert(),
           nb::arg("grad_hidden").noconvert(), nb::arg("grad_rows").noconvert(),
           nb::arg("grad_bias").noconvert(), "Gradients of (scale * log-probability).sum().")
      .def_prop_ro("rows", &PySoftmax::rows, nb::rv_policy::move,
                   "int64 [R]: the weight row of each gradient row.")
      .def_prop_ro("shared", &PySoftmax::shared, nb::rv_policy::move,
                   "Neurons shared by the batch, ascending.")
      .def_prop_ro("correction", &PySoftmax::correction, nb::rv_policy::move,
                   "float32 [B] added to shared logits.")
      .def_prop_ro("own", &PySoftmax::own, nb::rv_policy::move,
                   "Per example, its labels and then its candidates.");
  nb::class_<RowAdam>(module, "RowAdam", "Adam on rows; idle rows catch up when touched.")
      .def(
          "__init__",
          [](RowAdam* self, int64_t rows, int64_t steps) {
            new (self) RowAdam(make_adam(rows, steps));
          },
          nb::arg("rows"), nb::arg("steps") = 0)
      .def_prop_ro("steps", &RowAdam::steps, "Steps taken so far.")
      .def("step", &adam_step, nb::arg("value").noconvert(), nb::arg("first").noconvert(),
           nb::arg("second").noconvert(), nb::arg("ids").noconvert(),
           nb::arg("gradients").noconvert(), nb::arg("learning_rate"), nb::arg("beta1"),
           nb::arg("beta2"), nb::arg("epsilon"), nb::arg("threads") = 0,
           "One step with gradients [n, d] of rows ids [n], which may repeat.")
      .def("flush", &adam_flush, nb::arg("value").noconvert(), nb::arg("first").noconvert(),
           nb::arg("second").noconvert(), nb::arg("threads") = 0,
           "Bring every row to the present step.");
}

}  // namespace qcompile

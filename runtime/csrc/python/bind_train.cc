#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <optional>

#include "core/stopwatch.h"
#include "python/arrays.h"
#include "python/module.h"
#include "python/rows.h"
#include "train/sparse_softmax.h"

namespace nb = nanobind;

namespace qcompile {
namespace {

Mode mode_from(const std::string& name) {
  if (name == "lsh") return Mode::kLsh;
  if (name == "sampled") return Mode::kSampled;
  if (name == "full") return Mode::kFull;
  throw std::invalid_argument("unknown mode '" + name + "'; known: lsh, sampled, full");
}

Sampling sampling_from(const std::string& name) {
  if (name == "top-k") return Sampling::kTopK;
  if (name == "vanilla") return Sampling::kVanilla;
  if (name == "threshold") return Sampling::kThreshold;
  throw std::invalid_argument("unknown sampling '" + name + "'; known: top-k, vanilla, threshold");
}

Accumulation accumulation_from(const std::string& name) {
  if (name == "deterministic") return Accumulation::kDeterministic;
  if (name == "async") return Accumulation::kAsync;
  throw std::invalid_argument("unknown accumulation '" + name + "'; known: deterministic, async");
}

ActiveSet sample(const LshTables* tables, const ArrayIn<float>& hidden,
                 const ArrayIn<int64_t>& labels, const SampleOptions& options, int threads) {
  require_shape("hidden", hidden, {-1, -1});
  require_shape("labels", labels, {static_cast<int64_t>(hidden.shape(0)), -1});
  if (tables != nullptr) {
    if (!tables->built()) raise_data_error("the hash tables are empty: call build first");
    require_shape("hidden", hidden, {-1, tables->options().dimension});
    if (tables->options().rows != options.neurons) {
      raise_data_error("the hash tables hold " + std::to_string(tables->options().rows) +
                       " rows, the layer has " + std::to_string(options.neurons));
    }
  }
  return without_gil([&] {
    return sample_active(tables, hidden.data(),
                         {.ids = labels.data(),
                          .examples = static_cast<int64_t>(labels.shape(0)),
                          .width = static_cast<int64_t>(labels.shape(1))},
                         options, OpenMPExecutor(threads));
  });
}

// A batch in Python; the arrays come from the caller at each call and are not kept.
class PySoftmax {
 public:
  PySoftmax(const LshTables* tables, const ArrayIn<float>& hidden, const ArrayIn<int64_t>& labels,
            const SampleOptions& options, Accumulation accumulation, int threads)
      : depth_(static_cast<int64_t>(hidden.shape(hidden.ndim() - 1))),
        neurons_(options.neurons),
        threads_(threads),
        softmax_(sample(tables, hidden, labels, options, threads), accumulation),
        sample_time_(watch_.lap()) {}

  void catch_up(RowOptimizer& weight, RowOptimizer* bias) {
    check_optimizers(weight, bias);
    without_gil([&] { softmax_.catch_up(weight, bias, OpenMPExecutor(threads_)); });
  }

  ArrayOut<float> forward(ArrayIn<float> hidden, RowsIn weight, std::optional<RowsIn> bias) {
    const OutputLayer layer = layer_from(hidden, weight, bias);
    std::vector<float> log_probability(softmax_.set().examples);
    without_gil([&] {
      softmax_.forward(hidden.data(), layer, log_probability.data(), OpenMPExecutor(threads_));
    });
    ready_ = true;
    return to_array(std::move(log_probability));
  }

  nb::tuple partial(ArrayIn<float> hidden, RowsIn weight, std::optional<RowsIn> bias) {
    const OutputLayer layer = layer_from(hidden, weight, bias);
    const size_t examples = static_cast<size_t>(softmax_.set().examples);
    std::vector<float> top(examples), total(examples), label_sum(examples);
    std::vector<int64_t> label_count(examples);
    without_gil([&] {
      softmax_.partial(hidden.data(), layer,
                       {top.data(), total.data(), label_sum.data(), label_count.data()},
                       OpenMPExecutor(threads_));
    });
    partial_ = true;
    return nb::make_tuple(to_array(std::move(top)), to_array(std::move(total)),
                          to_array(std::move(label_sum)), to_array(std::move(label_count)));
  }

  void finish(ArrayIn<float> log_normaliser, ArrayIn<int64_t> label_count) {
    if (!partial_) raise_data_error("SparseSoftmax: call partial before finish");
    require_shape("log_normaliser", log_normaliser, {softmax_.set().examples});
    require_shape("label_count", label_count, {softmax_.set().examples});
    softmax_.finish(log_normaliser.data(), label_count.data());
    ready_ = true;
  }

  void backward(ArrayIn<float> hidden, RowsIn weight, ArrayIn<float> scale,
                ArrayInOut<float> grad_hidden, ArrayInOut<float> grad_rows,
                ArrayInOut<float> grad_bias) {
    const OutputLayer layer = layer_from(hidden, weight, std::nullopt);
    check_backward(scale, grad_hidden);
    require_shape("grad_rows", grad_rows, {softmax_.rows(), depth_});
    require_shape("grad_bias", grad_bias, {softmax_.rows()});
    without_gil([&] {
      softmax_.backward(hidden.data(), layer, scale.data(), grad_hidden.data(), grad_rows.data(),
                        grad_bias.data(), OpenMPExecutor(threads_));
    });
  }

  void backward_update(ArrayIn<float> hidden, RowsIn weight, ArrayIn<float> scale,
                       ArrayInOut<float> grad_hidden, RowOptimizer& weight_optimizer,
                       RowOptimizer* bias_optimizer) {
    const OutputLayer layer = layer_from(hidden, weight, std::nullopt);
    check_backward(scale, grad_hidden);
    check_optimizers(weight_optimizer, bias_optimizer);
    ready_ = false;  // the weights are no longer those of forward
    without_gil([&] {
      softmax_.backward_update(hidden.data(), layer, scale.data(), grad_hidden.data(),
                               weight_optimizer, bias_optimizer, OpenMPExecutor(threads_));
    });
  }

  ArrayOut<int64_t> rows() const {
    const std::vector<uint32_t>& rows = softmax_.set().rows;
    return to_array(std::vector<int64_t>(rows.begin(), rows.end()));
  }
  ArrayOut<uint32_t> shared() const { return to_array(softmax_.set().shared); }
  ArrayOut<float> drawn() const { return to_array(softmax_.set().drawn); }
  ArrayOut<float> correction() const {
    const std::vector<float>& correction = softmax_.set().correction;
    return to_array(
        std::vector<float>(correction.begin(), correction.begin() + softmax_.set().examples));
  }
  nb::list own() const {
    const ActiveSet& set = softmax_.set();
    nb::list lists;
    for (int64_t e = 0; e < set.examples; ++e) {
      lists.append(to_array(std::vector<uint32_t>(set.own.begin() + set.own_offsets[e],
                                                  set.own.begin() + set.own_offsets[e + 1])));
    }
    return lists;
  }

  nb::dict stats() const {
    const ActiveSet& set = softmax_.set();
    const StepTimes& times = softmax_.times();
    nb::dict stats;
    stats["examples"] = set.examples;
    stats["rows"] = softmax_.rows();
    stats["shared"] = set.shared.size();
    stats["pairs"] = set.own.size();
    stats["sample_ms"] = sample_time_;
    stats["catch_up_ms"] = times.catch_up;
    stats["own_ms"] = times.own;
    stats["shared_ms"] = times.shared;
    stats["hidden_ms"] = times.hidden;
    stats["rows_ms"] = times.rows;
    return stats;
  }

 private:
  OutputLayer layer_from(const ArrayIn<float>& hidden, const RowsIn& weight,
                         const std::optional<RowsIn>& bias) const {
    require_shape("hidden", hidden, {softmax_.set().examples, depth_});
    require_shape("weight", weight, {neurons_, depth_});
    OutputLayer layer{.weight = rows_view("weight", weight, neurons_), .bias = {}};
    if (!bias) return layer;
    require_shape("bias", *bias, {neurons_});
    layer.bias = {.data = bias->data(), .storage = storage_of("bias", *bias), .depth = 1};
    return layer;
  }

  void check_backward(const ArrayIn<float>& scale, const ArrayInOut<float>& grad_hidden) const {
    if (!ready_) raise_data_error("SparseSoftmax: call forward, or partial and finish, first");
    require_shape("scale", scale, {softmax_.set().examples});
    require_shape("grad_hidden", grad_hidden, {softmax_.set().examples, depth_});
  }

  void check_optimizers(const RowOptimizer& weight, const RowOptimizer* bias) const {
    const bool fits = weight.rows() == neurons_ && weight.depth() == depth_ &&
                      (bias == nullptr || (bias->rows() == neurons_ && bias->depth() == 1));
    if (!fits) raise_data_error("SparseSoftmax: an optimiser is bound to another shape");
  }

  int64_t depth_;
  int64_t neurons_;
  int threads_;
  bool partial_ = false;
  bool ready_ = false;
  Stopwatch watch_;
  SparseSoftmax softmax_;
  double sample_time_;
};

void make_softmax(PySoftmax* self, const LshTables* tables, ArrayIn<float> hidden,
                  ArrayIn<int64_t> labels, int64_t neurons, int64_t active, int64_t negatives,
                  uint64_t seed, uint64_t step, int threads, const std::string& mode,
                  const std::string& sampling, int64_t threshold, bool allow_unlabelled,
                  const std::string& accumulation) {
  const SampleOptions options = without_gil([&] {
    return SampleOptions{.mode = mode_from(mode),
                         .neurons = neurons,
                         .active = active,
                         .negatives = negatives,
                         .sampling = sampling_from(sampling),
                         .threshold = threshold,
                         .allow_unlabelled = allow_unlabelled,
                         .seed = seed,
                         .step = step};
  });
  const Accumulation how = without_gil([&] { return accumulation_from(accumulation); });
  new (self) PySoftmax(tables, hidden, labels, options, how, threads);
}

}  // namespace

void bind_train(nb::module_& module) {
  nb::class_<PySoftmax>(module, "SparseSoftmax",
                        "Softmax over the active neurons of one batch: sampled when made.")
      .def("__init__", &make_softmax, nb::arg("tables").none(), nb::arg("hidden").noconvert(),
           nb::arg("labels").noconvert(), nb::arg("neurons"), nb::arg("active"),
           nb::arg("negatives"), nb::arg("seed"), nb::arg("step"), nb::arg("threads") = 0,
           nb::kw_only(), nb::arg("mode") = "lsh", nb::arg("sampling") = "top-k",
           nb::arg("threshold") = 2, nb::arg("allow_unlabelled") = false,
           nb::arg("accumulation") = "deterministic")
      .def("catch_up", &PySoftmax::catch_up, nb::arg("weight_optimizer"),
           nb::arg("bias_optimizer").none(),
           "Bring the rows that forward reads to the optimisers' present step.")
      .def("forward", &PySoftmax::forward, nb::arg("hidden").noconvert(),
           nb::arg("weight").noconvert(), nb::arg("bias").noconvert().none(),
           "Log-probability float32 [B]: the mean over each example's labels.")
      .def("partial", &PySoftmax::partial, nb::arg("hidden").noconvert(),
           nb::arg("weight").noconvert(), nb::arg("bias").noconvert().none(),
           "Of neurons that are a part of all: greatest logit, sum of exp(logit - greatest), sum "
           "of the labels' logits, labels; each [B].")
      .def("finish", &PySoftmax::finish, nb::arg("log_normaliser").noconvert(),
           nb::arg("label_count").noconvert(),
           "After partial: log of the sum of exponentials and int64 labels over all parts, [B].")
      .def("backward", &PySoftmax::backward, nb::arg("hidden").noconvert(),
           nb::arg("weight").noconvert(), nb::arg("scale").noconvert(),
           nb::arg("grad_hidden").noconvert(), nb::arg("grad_rows").noconvert(),
           nb::arg("grad_bias").noconvert(), "Gradients of (scale * log-probability).sum().")
      .def("backward_update", &PySoftmax::backward_update, nb::arg("hidden").noconvert(),
           nb::arg("weight").noconvert(), nb::arg("scale").noconvert(),
           nb::arg("grad_hidden").noconvert(), nb::arg("weight_optimizer"),
           nb::arg("bias_optimizer").none(),
           "The same, with a step of the optimisers in place of gradients of rows.")
      .def_prop_ro("rows", &PySoftmax::rows, nb::rv_policy::move,
                   "int64 [R]: the weight row of each gradient row; distinct, ascending.")
      .def_prop_ro("shared", &PySoftmax::shared, nb::rv_policy::move,
                   "Neurons shared by the batch, ascending: its labels and those drawn.")
      .def_prop_ro(
          "drawn", &PySoftmax::drawn, nb::rv_policy::move,
          "float32 [S]: 1 for a shared neuron that was drawn, to stand for others; else 0.")
      .def_prop_ro("correction", &PySoftmax::correction, nb::rv_policy::move,
                   "float32 [B] added to the logits of drawn neurons.")
      .def_prop_ro("stats", &PySoftmax::stats, nb::rv_policy::move,
                   "Rows touched, pairs of an example and a neuron of its own, and milliseconds of "
                   "the parts of the step so far.")
      .def_prop_ro("own", &PySoftmax::own, nb::rv_policy::move,
                   "Per example, its labels and then its candidates.");
}

}  // namespace qcompile

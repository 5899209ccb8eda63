#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <tuple>

#include "python/arrays.h"
#include "python/module.h"
#include "quadratic/block.h"

namespace nb = nanobind;

namespace qcompile {
namespace {

using Values = nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>;
using Outputs = nb::ndarray<nb::c_contig, nb::device::cpu>;
// Product, activation, batch norms of the branches and of the combination, and of planes that end
// in a max-pooling of 2x2 lines and width, else zeros.
using Description =
    std::tuple<std::string, std::string, std::vector<std::string>, int64_t, int64_t>;

template <typename Value, size_t kCount>
Value named(const char* what, const std::string& name,
            const std::pair<const char*, Value> (&known)[kCount]) {
  for (const auto& [text, value] : known) {
    if (name == text) return value;
  }
  raise_data_error(std::string("unknown ") + what + " '" + name + "'");
}

Product product_from(const std::string& name) {
  return named<Product>(
      "product", name,
      {{"none", Product::kNone}, {"square", Product::kSquare}, {"pair", Product::kPair}});
}

Activation activation_from(const std::string& name) {
  return named<Activation>("activation", name,
                           {{"none", Activation::kNone},
                            {"relu", Activation::kRelu},
                            {"gelu", Activation::kGelu},
                            {"gelu_tanh", Activation::kGeluTanh},
                            {"silu", Activation::kSilu},
                            {"sigmoid", Activation::kSigmoid},
                            {"tanh", Activation::kTanh}});
}

Norm norm_from(const std::string& name) {
  return named<Norm>("batch norm", name,
                     {{"none", Norm::kNone}, {"fixed", Norm::kFixed}, {"batch", Norm::kBatch}});
}

template <typename Array>
void require_alike(const char* name, const Array& array, const Values& like) {
  const auto extent = [&](size_t axis) { return static_cast<int64_t>(like.shape(axis)); };
  require_shape(name, array, {extent(0), extent(1), extent(2)});
  if (array.dtype() != like.dtype()) {
    raise_data_error(std::string(name) + ": expected the type of the values");
  }
}

Block block_from(const std::vector<Values>& values, const Description& description) {
  const auto& [product, activation, norms, lines, width] = description;
  if (values.empty()) raise_data_error("a block needs values");
  require_shape("values", values[0], {-1, -1, -1});
  Block block;
  block.product = product_from(product);
  block.activation = activation_from(activation);
  block.has_c = static_cast<int>(values.size()) > block.branches();
  if (static_cast<int>(values.size()) != block.branches() ||
      static_cast<int>(norms.size()) != block.slots()) {
    raise_data_error("a block needs one array for each branch, and one batch norm more");
  }
  for (size_t slot = 0; slot < norms.size(); ++slot) block.norms[slot] = norm_from(norms[slot]);
  for (const Values& array : values) require_alike("values", array, values[0]);
  block.shape = {static_cast<int64_t>(values[0].shape(0)), static_cast<int64_t>(values[0].shape(1)),
                 static_cast<int64_t>(values[0].shape(2))};
  block.pool_width = width;
  if ((lines != 0 || width != 0) && !block.poolable(lines)) {
    raise_data_error("a block of this shape and activation cannot be pooled");
  }
  return block;
}

// What is of the output's shape.
template <typename Array>
void require_output(const char* name, const Array& array, const Block& block, const Values& like) {
  const BlockShape shape = block.output_shape();
  require_shape(name, array, {shape.outer, shape.channels, shape.inner});
  if (array.dtype() != like.dtype()) {
    raise_data_error(std::string(name) + ": expected the type of the values");
  }
}

// Mean, rstd, weight and bias of each slot, [4, slots, channels].
template <typename T>
Constants<T> constants_from(const Block& block, const ArrayInOut<T>& constants) {
  require_shape("constants", constants, {4, block.slots(), block.shape.channels});
  const int64_t size = block.slots() * block.shape.channels;
  T* data = constants.data();
  return {data, data + size, data + 2 * size, data + 3 * size};
}

void run_forward(const std::vector<Values>& values, const Description& description,
                 ArrayInOut<float> constants, ArrayInOut<float> running,
                 const std::vector<double>& momentum, const std::vector<double>& eps,
                 ArrayInOut<float> output, int threads) {
  Forward problem{};
  problem.block = block_from(values, description);
  const Block& block = problem.block;
  if (block.activation > Activation::kRelu) {
    raise_data_error("the forward pass knows the activations none and relu");
  }
  require_output("output", output, block, values[0]);
  problem.constants = constants_from(block, constants);
  require_shape("running", running, {2, block.slots(), block.shape.channels});
  const size_t slots = static_cast<size_t>(block.slots());
  if (momentum.size() != slots || eps.size() != slots) {
    raise_data_error("momentum and eps: expected one for each slot");
  }
  problem.running_mean = running.data();
  problem.running_variance = running.data() + block.slots() * block.shape.channels;
  for (size_t i = 0; i < values.size(); ++i) {
    problem.values[i] = static_cast<const float*>(values[i].data());
  }
  for (size_t slot = 0; slot < slots; ++slot) {
    problem.momentum[slot] = momentum[slot];
    problem.eps[slot] = eps[slot];
  }
  problem.output = output.data();
  without_gil([&] { qcompile::forward(problem, OpenMPExecutor(threads)); });
}

template <typename S, typename T>
void backward(const Block& block, const Values& grad, const std::vector<Values>& values,
              const Outputs& constants, const Outputs& sums,
              const std::vector<std::optional<Outputs>>& outputs, int threads) {
  const ArrayInOut<T> fixed(constants), added(sums);
  Backward<S, T> problem{};
  problem.block = block;
  problem.grad = static_cast<const S*>(grad.data());
  problem.constants = constants_from(block, fixed);
  problem.plain = added.data();
  problem.projected = added.data() + block.slots() * block.shape.channels;
  for (size_t i = 0; i < values.size(); ++i) {
    problem.values[i] = static_cast<const S*>(values[i].data());
    if (i < outputs.size() && outputs[i]) problem.outputs[i] = static_cast<S*>(outputs[i]->data());
  }
  without_gil([&] {
    const OpenMPExecutor executor(threads);
    if (outputs.empty()) {
      backward_sums(problem, executor);
    } else {
      backward_write(problem, executor);
    }
  });
}

void dispatch(const Values& grad, const std::vector<Values>& values, const Description& description,
              const Outputs& constants, const Outputs& sums,
              const std::vector<std::optional<Outputs>>& outputs, int threads) {
  const Block block = block_from(values, description);
  require_output("grad", grad, block, values[0]);
  for (const std::optional<Outputs>& output : outputs) {
    if (output) require_alike("outputs", *output, values[0]);
  }
  require_shape("sums", sums, {2, block.slots(), block.shape.channels});
  const nb::dlpack::dtype type = values[0].dtype();
  const bool bfloat =
      type.code == static_cast<uint8_t>(nb::dlpack::dtype_code::Bfloat) && type.bits == 16;
  const bool wide = type == nb::dtype<double>();
  if (!bfloat && !wide && type != nb::dtype<float>()) {
    raise_data_error("values: expected the type float32, float64 or bfloat16");
  }
  for (const Outputs* array : {&constants, &sums}) {
    if (array->dtype() != (wide ? nb::dtype<double>() : nb::dtype<float>())) {
      raise_data_error("constants and sums: expected float32, for float64 values float64");
    }
  }
  const auto run = bfloat ? backward<uint16_t, float>
                   : wide ? backward<double, double>
                          : backward<float, float>;
  run(block, grad, values, constants, sums, outputs, threads);
}

void sums(const Values& grad, const std::vector<Values>& values, const Description& description,
          const Outputs& constants, const Outputs& into, int threads) {
  dispatch(grad, values, description, constants, into, {}, threads);
}

void write(const Values& grad, const std::vector<Values>& values, const Description& description,
           const Outputs& constants, const Outputs& from,
           const std::vector<std::optional<Outputs>>& outputs, int threads) {
  if (outputs.size() != values.size()) {
    raise_data_error("outputs: expected one, or None, for each of the values");
  }
  dispatch(grad, values, description, constants, from, outputs, threads);
}

}  // namespace

void bind_quadratic(nb::module_& module) {
  module.def(
      "block_pools",
      [](int64_t outer, int64_t channels, int64_t inner, int64_t lines, int64_t width) {
        Block block{.shape = {outer, channels, inner}};
        block.pool_width = width;
        return block.poolable(lines);
      },
      nb::arg("outer"), nb::arg("channels"), nb::arg("inner"), nb::arg("lines"), nb::arg("width"),
      "Whether the kernels can pool planes [lines, width] of values [outer, C, inner].");
  module.def("block_forward", &run_forward, nb::arg("values"), nb::arg("block"),
             nb::arg("constants").noconvert(), nb::arg("running").noconvert(), nb::arg("momentum"),
             nb::arg("eps"), nb::arg("output").noconvert(), nb::arg("threads") = 0,
             "act(BN(BN_a(a)·BN_b(b) + BN_c(c))) of float32 values [outer, C, inner]. block: "
             "product; activation; batch norms of each branch and then of the combination, none, "
             "fixed or batch; lines and width of planes that end in a 2x2 max-pooling. constants "
             "[4, slots, "
             "C]: mean and 1/deviation, of batch written; weight and bias. running [2, slots, C]: "
             "means and variances, of batch updated. output may be the first of the values.");
  module.def("block_backward_sums", &sums, nb::arg("grad").noconvert(), nb::arg("values"),
             nb::arg("block"), nb::arg("constants").noconvert(), nb::arg("sums").noconvert(),
             nb::arg("threads") = 0,
             "Write sums [2, slots, C]: the gradients of biases and weights.");
  module.def("block_backward_write", &write, nb::arg("grad").noconvert(), nb::arg("values"),
             nb::arg("block"), nb::arg("constants").noconvert(), nb::arg("sums").noconvert(),
             nb::arg("outputs"), nb::arg("threads") = 0,
             "Write the gradients of values, into the values themselves if all at once.");
}

}  // namespace qcompile

#include <nanobind/stl/vector.h>

#include "python/arrays.h"
#include "python/module.h"
#include "quadratic/winograd.h"

namespace nb = nanobind;

namespace qcompile {
namespace {

// x [batch, inputs, height, width] and weight [outputs, inputs, 3, 3].
template <typename Weight>
Convolution convolution_from(const ArrayIn<float>& x, const Weight& weight, int64_t padding) {
  require_shape("x", x, {-1, -1, -1, -1});
  require_shape("weight", weight, {-1, static_cast<int64_t>(x.shape(1)), 3, 3});
  const Convolution shape{.batch = static_cast<int64_t>(x.shape(0)),
                          .inputs = static_cast<int64_t>(x.shape(1)),
                          .outputs = static_cast<int64_t>(weight.shape(0)),
                          .height = static_cast<int64_t>(x.shape(2)),
                          .width = static_cast<int64_t>(x.shape(3)),
                          .padding = padding};
  if (padding < 0 || padding > 2 || shape.output_height() < 1 || shape.output_width() < 1) {
    raise_data_error("padding: expected 0, 1 or 2 and an output that is not empty");
  }
  return shape;
}

template <typename Array>
void require_output(const char* name, const Array& array, const Convolution& shape) {
  require_shape(name, array,
                {shape.batch, shape.outputs, shape.output_height(), shape.output_width()});
}

void require_scratch(const ArrayInOut<float>& scratch, int64_t size) {
  if (scratch.ndim() != 1 || static_cast<int64_t>(scratch.shape(0)) < size) {
    raise_data_error("scratch: expected room for " + std::to_string(size) + " numbers");
  }
}

using Arrays = std::vector<ArrayIn<float>>;
using Outputs = std::vector<ArrayInOut<float>>;

template <typename Pointer, typename Array>
std::vector<Pointer> pointers(const std::vector<Array>& arrays) {
  std::vector<Pointer> found;
  for (const Array& array : arrays) found.push_back(array.data());
  return found;
}

// The convolution of all weights, as many as there are `others`.
template <typename Weight, typename Other>
Convolution shared_shape(const ArrayIn<float>& x, const std::vector<Weight>& weights,
                         const std::vector<Other>& others, int64_t padding) {
  if (weights.empty() || weights.size() != others.size()) {
    raise_data_error("expected as many weights as outputs, and one at least");
  }
  const Convolution shape = convolution_from(x, weights[0], padding);
  for (const Weight& weight : weights) {
    require_shape("weight", weight, {shape.outputs, shape.inputs, 3, 3});
  }
  for (const Other& other : others) require_output("output", other, shape);
  return shape;
}

int64_t transformed_size(const Convolution& shape) { return kPlaces * shape.place_stride(); }

void run_forward(ArrayIn<float> x, Arrays weights, int64_t padding, ArrayInOut<float> scratch,
                 Outputs outputs, int threads) {
  const Convolution shape = shared_shape(x, weights, outputs, padding);
  const int64_t apart = transformed_size(shape);
  require_scratch(scratch, apart * static_cast<int64_t>(weights.size()));
  without_gil([&] {
    const OpenMPExecutor executor(threads);
    for (size_t i = 0; i < weights.size(); ++i) {
      transform_weights(shape, weights[i].data(), scratch.data() + i * apart, executor);
    }
    const float* from[] = {x.data()};
    convolve({shape, from, scratch.data(), pointers<float*>(outputs), false}, executor);
  });
}

void towards_input(Arrays grads, Arrays weights, int64_t padding, ArrayInOut<float> scratch,
                   ArrayInOut<float> total, bool add, int threads) {
  const Convolution shape = shared_shape(ArrayIn<float>(total), weights, grads, padding);
  const int64_t apart = transformed_size(shape);
  require_scratch(scratch, apart * static_cast<int64_t>(weights.size()));
  const Convolution back{.batch = shape.batch,
                         .inputs = shape.outputs,
                         .outputs = shape.inputs,
                         .height = shape.output_height(),
                         .width = shape.output_width(),
                         .padding = 2 - padding};
  without_gil([&] {
    const OpenMPExecutor executor(threads);
    for (size_t i = 0; i < weights.size(); ++i) {
      transform_weights_back(shape, weights[i].data(), scratch.data() + i * apart, executor);
    }
    float* const to[] = {total.data()};
    convolve({back, pointers<const float*>(grads), scratch.data(), to, add}, executor);
  });
}

void towards_weights(ArrayIn<float> x, Arrays grads, int64_t padding, ArrayInOut<float> scratch,
                     Outputs outputs, int threads) {
  const Convolution shape = shared_shape(x, outputs, grads, padding);
  require_scratch(scratch, weight_gradient_scratch(shape, static_cast<int64_t>(grads.size())));
  without_gil([&] {
    weight_gradients(
        {shape, x.data(), pointers<const float*>(grads), scratch.data(), pointers<float*>(outputs)},
        OpenMPExecutor(threads));
  });
}

nb::tuple scratch_sizes(int64_t inputs, int64_t outputs, int64_t height, int64_t width,
                        int64_t padding, int64_t count) {
  const Convolution shape{1, inputs, outputs, height, width, padding};
  return nb::make_tuple(count * transformed_size(shape), weight_gradient_scratch(shape, count));
}

}  // namespace

void bind_winograd(nb::module_& module) {
  module.def("winograd_forward", &run_forward, nb::arg("x").noconvert(), nb::arg("weights"),
             nb::arg("padding"), nb::arg("scratch").noconvert(), nb::arg("outputs"),
             nb::arg("threads") = 0,
             "Convolve x [B, I, H, W] with each of the weights [O, I, 3, 3].");
  module.def("winograd_towards_input", &towards_input, nb::arg("grads"), nb::arg("weights"),
             nb::arg("padding"), nb::arg("scratch").noconvert(), nb::arg("total").noconvert(),
             nb::arg("add"), nb::arg("threads") = 0,
             "The gradient of x from those of all outputs, written to or added to total.");
  module.def("winograd_towards_weights", &towards_weights, nb::arg("x").noconvert(),
             nb::arg("grads"), nb::arg("padding"), nb::arg("scratch").noconvert(),
             nb::arg("outputs"), nb::arg("threads") = 0,
             "The gradients of the weights, of one size, from those of the outputs.");
  module.def("winograd_scratch", &scratch_sizes, nb::arg("inputs"), nb::arg("outputs"),
             nb::arg("height"), nb::arg("width"), nb::arg("padding"), nb::arg("count"),
             "Numbers of scratch for so many convolutions and gradients of x; of weights.");
}

}  // namespace qcompile

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

void run_forward(ArrayIn<float> x, ArrayIn<float> weight, int64_t padding,
                 ArrayInOut<float> scratch, ArrayInOut<float> output, int threads) {
  const Convolution shape = convolution_from(x, weight, padding);
  require_scratch(scratch, kPlaces * shape.place_stride());
  require_output("output", output, shape);
  without_gil([&] {
    const OpenMPExecutor executor(threads);
    transform_weights(shape, weight.data(), scratch.data(), executor);
    convolve(shape, x.data(), scratch.data(), false, output.data(), executor);
  });
}

void towards_input(ArrayIn<float> grad, ArrayIn<float> weight, int64_t padding,
                   ArrayInOut<float> scratch, ArrayInOut<float> total, bool add, int threads) {
  const Convolution shape = convolution_from(ArrayIn<float>(total), weight, padding);
  require_output("grad", grad, shape);
  require_scratch(scratch, kPlaces * shape.place_stride());
  const Convolution back{.batch = shape.batch,
                         .inputs = shape.outputs,
                         .outputs = shape.inputs,
                         .height = shape.output_height(),
                         .width = shape.output_width(),
                         .padding = 2 - padding};
  without_gil([&] {
    const OpenMPExecutor executor(threads);
    transform_weights_back(shape, weight.data(), scratch.data(), executor);
    convolve(back, grad.data(), scratch.data(), add, total.data(), executor);
  });
}

void towards_weight(ArrayIn<float> x, ArrayIn<float> grad, int64_t padding,
                    ArrayInOut<float> scratch, ArrayInOut<float> output, int threads) {
  const Convolution shape = convolution_from(x, output, padding);
  require_output("grad", grad, shape);
  require_scratch(scratch, weight_gradient_scratch(shape));
  without_gil([&] {
    weight_gradient(shape, x.data(), grad.data(), scratch.data(), output.data(),
                    OpenMPExecutor(threads));
  });
}

int64_t scratch_size(int64_t inputs, int64_t outputs, int64_t height, int64_t width,
                     int64_t padding) {
  return weight_gradient_scratch({1, inputs, outputs, height, width, padding});
}

}  // namespace

void bind_winograd(nb::module_& module) {
  module.def(
      "winograd_forward", &run_forward, nb::arg("x").noconvert(), nb::arg("weight").noconvert(),
      nb::arg("padding"), nb::arg("scratch").noconvert(), nb::arg("output").noconvert(),
      nb::arg("threads") = 0,
      "Convolve x [B, I, H, W] with weight [O, I, 3, 3]; scratch has room for 16 (I O + 16).");
  module.def("winograd_towards_input", &towards_input, nb::arg("grad").noconvert(),
             nb::arg("weight").noconvert(), nb::arg("padding"), nb::arg("scratch").noconvert(),
             nb::arg("total").noconvert(), nb::arg("add"), nb::arg("threads") = 0,
             "The gradient of x, written to or added to total.");
  module.def("winograd_towards_weight", &towards_weight, nb::arg("x").noconvert(),
             nb::arg("grad").noconvert(), nb::arg("padding"), nb::arg("scratch").noconvert(),
             nb::arg("output").noconvert(), nb::arg("threads") = 0,
             "The gradient of the weight; scratch as winograd_scratch says.");
  module.def("winograd_scratch", &scratch_size, nb::arg("inputs"), nb::arg("outputs"),
             nb::arg("height"), nb::arg("width"), nb::arg("padding"));
}

}  // namespace qcompile

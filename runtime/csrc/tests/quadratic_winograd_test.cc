// Winograd's convolutions against sums in double; the same bits for every executor and instruction
// set.
#include "quadratic/winograd.h"
#include "tests/index_testing.h"

namespace qcompile {
namespace {

// A convolution, its gradients and their inputs, in exactly sized buffers.
struct Case {
  explicit Case(const Convolution& shape)
      : shape(shape),
        x(normal_values(shape.batch * shape.inputs * shape.height * shape.width, 1)),
        weight(normal_values(9 * shape.inputs * shape.outputs, 2)),
        grad(normal_values(
            shape.batch * shape.outputs * shape.output_height() * shape.output_width(), 3)),
        y(grad.size()),
        towards_x(x.size(), 0.5f),
        towards_weight(weight.size()) {}

  void compute(const Executor& executor, Isa isa) {
    std::vector<float> transformed(static_cast<size_t>(kPlaces * shape.place_stride()));
    transform_weights(shape, weight.data(), transformed.data(), executor);
    convolve(shape, x.data(), transformed.data(), false, y.data(), executor, isa);
    const Convolution back{.batch = shape.batch,
                           .inputs = shape.outputs,
                           .outputs = shape.inputs,
                           .height = shape.output_height(),
                           .width = shape.output_width(),
                           .padding = 2 - shape.padding};
    transform_weights_back(shape, weight.data(), transformed.data(), executor);
    convolve(back, grad.data(), transformed.data(), true, towards_x.data(), executor, isa);
    std::vector<float> scratch(static_cast<size_t>(weight_gradient_scratch(shape)));
    weight_gradient(shape, x.data(), grad.data(), scratch.data(), towards_weight.data(), executor,
                    isa);
  }

  // Calls body(place in x, in the weight, in y) for each product.
  template <typename F>
  void for_products(F&& body) const {
    const int64_t height = shape.output_height(), width = shape.output_width();
    const int64_t outputs = shape.batch * shape.outputs * height * width;
    for (int64_t at = 0; at < outputs; ++at) {
      const int64_t column = at % width, line = at / width % height;
      const int64_t o = at / (width * height) % shape.outputs;
      const int64_t image = at / (width * height * shape.outputs);
      for (int64_t i = 0; i < shape.inputs; ++i) {
        for (int64_t tap = 0; tap < 9; ++tap) {
          const int64_t from = line + tap / 3 - shape.padding;
          const int64_t beside = column + tap % 3 - shape.padding;
          if (from < 0 || from >= shape.height || beside < 0 || beside >= shape.width) continue;
          body(((image * shape.inputs + i) * shape.height + from) * shape.width + beside,
               (o * shape.inputs + i) * 9 + tap, at);
        }
      }
    }
  }

  Convolution shape;
  std::vector<float> x, weight, grad, y, towards_x, towards_weight;
};

void expect_close(const std::vector<float>& got, const std::vector<double>& expected) {
  double largest = 0;
  for (double value : expected) largest = std::max(largest, std::abs(value));
  for (size_t i = 0; i < got.size(); ++i) EXPECT(std::abs(got[i] - expected[i]) <= 2e-6 * largest);
}

void test_convolution(const Convolution& shape) {
  Case found(shape);
  found.compute(SerialExecutor(), best_isa());
  std::vector<double> y(found.y.size()), x(found.x.size(), 0.5), weight(found.weight.size());
  found.for_products([&](int64_t from, int64_t tap, int64_t to) {
    y[to] += double{found.x[from]} * found.weight[tap];
    x[from] += double{found.grad[to]} * found.weight[tap];
    weight[tap] += double{found.grad[to]} * found.x[from];
  });
  expect_close(found.y, y);
  expect_close(found.towards_x, x);
  expect_close(found.towards_weight, weight);
  const auto same = [&](const Executor& executor, Isa isa) {
    Case other(shape);
    other.compute(executor, isa);
    return other.y == found.y && other.towards_x == found.towards_x &&
           other.towards_weight == found.towards_weight;
  };
  for (Isa isa : supported_isas()) EXPECT(same(SerialExecutor(), isa));
  EXPECT(same(ThreadExecutor(3), best_isa()));
}

}  // namespace
}  // namespace qcompile

int main() {
  using qcompile::Convolution;
  for (const Convolution& shape : {Convolution{2, 3, 5, 7, 6, 1}, Convolution{3, 17, 8, 1, 9, 1},
                                   Convolution{1, 4, 4, 5, 5, 0}, Convolution{2, 3, 3, 4, 80, 2},
                                   Convolution{2, 70, 66, 2, 2, 1}, Convolution{9, 2, 3, 16, 16, 1},
                                   Convolution{1, 1, 1, 3, 3, 0}}) {
    qcompile::test_convolution(shape);
  }
}

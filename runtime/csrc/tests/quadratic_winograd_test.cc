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
        towards_x(x.size(), 0.5f) {
    const int64_t size = shape.batch * shape.outputs * shape.output_height() * shape.output_width();
    for (unsigned i = 0; i < 2; ++i) {
      weight[i] = normal_values(9 * shape.inputs * shape.outputs, 2 + i);
      grad[i] = normal_values(size, 4 + i);
      y[i].resize(grad[i].size());
      towards_weight[i].resize(weight[i].size());
    }
  }

  // Two convolutions of one input at once, whose gradients of the input are added up.
  void compute(const Executor& executor, Isa isa) {
    const int64_t apart = kPlaces * shape.place_stride();
    std::vector<float> transformed(static_cast<size_t>(2 * apart));
    for (int i = 0; i < 2; ++i) {
      transform_weights(shape, weight[i].data(), transformed.data() + i * apart, executor);
    }
    const float* const from[] = {x.data()};
    float* const to[] = {y[0].data(), y[1].data()};
    convolve({shape, from, transformed.data(), to, false}, executor, isa);
    const Convolution back{.batch = shape.batch,
                           .inputs = shape.outputs,
                           .outputs = shape.inputs,
                           .height = shape.output_height(),
                           .width = shape.output_width(),
                           .padding = 2 - shape.padding};
    for (int i = 0; i < 2; ++i) {
      transform_weights_back(shape, weight[i].data(), transformed.data() + i * apart, executor);
    }
    const float* const grads[] = {grad[0].data(), grad[1].data()};
    float* const total[] = {towards_x.data()};
    convolve({back, grads, transformed.data(), total, true}, executor, isa);
    std::vector<float> scratch(static_cast<size_t>(weight_gradient_scratch(shape, 2)));
    float* const weights[] = {towards_weight[0].data(), towards_weight[1].data()};
    weight_gradients({shape, x.data(), grads, scratch.data(), weights}, executor, isa);
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
  std::vector<float> x, towards_x;
  std::vector<float> weight[2], grad[2], y[2], towards_weight[2];
};

void expect_close(const std::vector<float>& got, const std::vector<double>& expected) {
  double largest = 0;
  for (double value : expected) largest = std::max(largest, std::abs(value));
  for (size_t i = 0; i < got.size(); ++i) EXPECT(std::abs(got[i] - expected[i]) <= 2e-6 * largest);
}

void test_convolution(const Convolution& shape) {
  Case found(shape);
  found.compute(SerialExecutor(), best_isa());
  std::vector<double> x(found.x.size(), 0.5);
  for (int i = 0; i < 2; ++i) {
    std::vector<double> y(found.y[i].size()), weight(found.weight[i].size());
    found.for_products([&](int64_t from, int64_t tap, int64_t to) {
      y[to] += double{found.x[from]} * found.weight[i][tap];
      x[from] += double{found.grad[i][to]} * found.weight[i][tap];
      weight[tap] += double{found.grad[i][to]} * found.x[from];
    });
    expect_close(found.y[i], y);
    expect_close(found.towards_weight[i], weight);
  }
  expect_close(found.towards_x, x);
  const auto same = [&](const Executor& executor, Isa isa) {
    Case other(shape);
    other.compute(executor, isa);
    bool equal = other.towards_x == found.towards_x;
    for (int i = 0; i < 2; ++i) {
      equal =
          equal && other.y[i] == found.y[i] && other.towards_weight[i] == found.towards_weight[i];
    }
    return equal;
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

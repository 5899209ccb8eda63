// Passes of quadratic blocks: the same bits for every executor, instruction set and layout; values
// are tested from Python.
#include "quadratic/block.h"
#include "tests/index_testing.h"

namespace qcompile {
namespace {

constexpr double kMomentum = 0.1, kEps = 1e-5;

// A block and its tensors in exactly sized buffers, so that a sanitizer sees a read beyond any.
struct Case {
  explicit Case(const Block& block) : block(block) {
    const int64_t size = block.shape.count() * block.shape.channels;
    const BlockShape out = block.output_shape();
    for (int i = 0; i < block.branches(); ++i) {
      values.push_back(normal_values(size, static_cast<unsigned>(i)));
    }
    grad = normal_values(out.count() * out.channels, 7);
    const int64_t constant = block.slots() * block.shape.channels;
    for (unsigned i = 0; i < 4; ++i) constants.push_back(normal_values(constant, 10 + i));
    mean.assign(static_cast<size_t>(constant), 0.25f);
    variance.assign(static_cast<size_t>(constant), 2);
    output.resize(grad.size());
  }

  Constants<float> parts() {
    return {constants[0].data(), constants[1].data(), constants[2].data(), constants[3].data()};
  }

  void run_forward(const Executor& executor, Isa isa) {
    Forward problem{.block = block,
                    .values = {},
                    .constants = parts(),
                    .running_mean = mean.data(),
                    .running_variance = variance.data(),
                    .momentum = {},
                    .eps = {},
                    .output = output.data()};
    for (int i = 0; i < block.branches(); ++i) problem.values[i] = values[i].data();
    for (double& momentum : problem.momentum) momentum = kMomentum;
    for (double& eps : problem.eps) eps = kEps;
    forward(problem, executor, isa);
  }

  // Gradients over the values, or beside them.
  void run_backward(const Executor& executor, Isa isa, bool over) {
    plain.assign(mean.size(), 0);
    projected.assign(mean.size(), 0);
    gradients = values;
    Backward<float, float> problem{.block = block,
                                   .grad = grad.data(),
                                   .values = {},
                                   .constants = parts(),
                                   .plain = plain.data(),
                                   .projected = projected.data(),
                                   .outputs = {}};
    for (int i = 0; i < block.branches(); ++i) {
      problem.outputs[i] = gradients[i].data();
      problem.values[i] = over ? gradients[i].data() : values[i].data();
    }
    backward_sums(problem, executor, isa);
    backward_write(problem, executor, isa);
  }

  bool same(const Case& other) const {
    return output == other.output && mean == other.mean && variance == other.variance &&
           constants == other.constants && plain == other.plain && projected == other.projected &&
           gradients == other.gradients;
  }

  Block block;
  std::vector<std::vector<float>> values, constants, gradients;
  std::vector<float> grad, mean, variance, output, plain, projected;
};

Case computed(const Block& block, const Executor& executor, Isa isa, bool over) {
  Case found(block);
  Block ends = block;
  if (ends.activation > Activation::kRelu) found.block.activation = Activation::kNone;
  found.run_forward(executor, isa);
  found.block = block;
  found.run_backward(executor, isa, over);
  for (float value : found.output) EXPECT(std::isfinite(value));
  for (const std::vector<float>& of_branch : found.gradients) {
    for (float value : of_branch) EXPECT(std::isfinite(value));
  }
  return found;
}

void test_the_same_everywhere(const Block& block) {
  const Case alone = computed(block, SerialExecutor(), Isa::kScalar, false);
  for (Isa isa : supported_isas()) {
    EXPECT(alone.same(computed(block, SerialExecutor(), isa, true)));
  }
  EXPECT(alone.same(computed(block, ThreadExecutor(3), best_isa(), false)));
}

std::vector<Block> blocks(const BlockShape& shape) {
  std::vector<Block> found;
  for (Product product : {Product::kNone, Product::kSquare, Product::kPair}) {
    for (bool has_c : {false, true}) {
      for (int norms = 0; norms < 4; ++norms) {
        Block block{.shape = shape, .product = product, .has_c = has_c};
        for (int slot = 0; slot < block.branches(); ++slot) {
          if ((norms & 1) != 0) block.norms[slot] = slot == 1 ? Norm::kFixed : Norm::kBatch;
        }
        if ((norms & 2) != 0) block.norms[block.branches()] = Norm::kBatch;
        found.push_back(block);
      }
    }
  }
  return found;
}

void test_shapes_and_activations() {
  for (const BlockShape& shape : {BlockShape{3, 5, 42}, BlockShape{2, 2, 1031},
                                  BlockShape{7, 19, 1}, BlockShape{37, 16, 1}}) {
    int turn = 0;
    for (Block block : blocks(shape)) {
      block.activation = static_cast<Activation>(turn++ % 7);
      test_the_same_everywhere(block);
    }
  }
}

void test_poolings() {
  struct Planes {
    BlockShape shape;
    int64_t lines, width;
  };
  for (const auto& [shape, lines, width] :
       {Planes{{3, 5, 24}, 4, 6}, Planes{{9, 3, 4}, 2, 2}, Planes{{2, 2, 640}, 20, 32},
        Planes{{2 * 24, 19, 1}, 4, 6}}) {
    for (Block block : blocks(shape)) {
      block.pool_width = width;
      EXPECT(block.poolable(lines));
      EXPECT(!block.poolable(lines + 1) && !block.poolable(lines / 2 * 3));
      block.activation = block.has_c ? Activation::kRelu : Activation::kNone;
      test_the_same_everywhere(block);
    }
  }
  Block wide{.shape = {1, 1, 2 * 4096}};
  wide.pool_width = 4096;
  EXPECT(!wide.poolable(2));
}

// Channels next to each other and apart: sums take another order, so equal up to rounding.
void test_layouts_agree() {
  const int64_t outer = 3, channels = 21, inner = 10;
  for (const Block& apart : blocks({outer, channels, inner})) {
    Block adjacent = apart;
    adjacent.shape = {outer * inner, channels, 1};
    Case first(apart), second(adjacent);
    const auto place = [&](int64_t i) {
      return static_cast<size_t>((i / (channels * inner) * inner + i % inner) * channels +
                                 i / inner % channels);
    };
    for (int64_t i = 0; i < outer * channels * inner; ++i) {
      for (int b = 0; b < apart.branches(); ++b) second.values[b][place(i)] = first.values[b][i];
      second.grad[place(i)] = first.grad[i];
    }
    for (Case* one : {&first, &second}) {
      one->run_forward(SerialExecutor(), best_isa());
      one->run_backward(SerialExecutor(), best_isa(), false);
    }
    for (int64_t i = 0; i < outer * channels * inner; ++i) {
      for (int b = 0; b < apart.branches(); ++b) {
        const float expected = first.gradients[b][i];
        EXPECT(std::abs(second.gradients[b][place(i)] - expected) <=
               1e-3f * (1 + std::abs(expected)));
      }
    }
  }
}

}  // namespace
}  // namespace qcompile

int main() {
  qcompile::test_shapes_and_activations();
  qcompile::test_poolings();
  qcompile::test_layouts_agree();
}

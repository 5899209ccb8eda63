// Convolutions of 3x3 with stride 1 on float32 by Winograd's minimal filtering F(2x2, 3x3): 16
// multiplications for each 2x2 outputs and channel in place of 36.
//
// Source: Lavin and Gray, "Fast algorithms for convolutional neural networks", 2016. Tiles of 4x4
// inputs, 3x3 weights and 2x2 outputs are transformed by matrices of 0, 1 and 1/2; between the
// transforms there is one matrix product for each of 16 places. Results equal those of the direct
// method up to rounding, and do not depend on the threads or the instruction set.
#pragma once

#include <cstdint>
#include <span>

#include "core/isa.h"
#include "core/parallel.h"

namespace qcompile {

constexpr int kPlaces = 16;

struct Convolution {
  int64_t batch;
  int64_t inputs;   // channels
  int64_t outputs;  // channels
  int64_t height;   // of the input
  int64_t width;
  int64_t padding;  // zeros at each border, at most 2

  int64_t output_height() const { return height + 2 * padding - 2; }
  int64_t output_width() const { return width + 2 * padding - 2; }
  int64_t tile_rows() const { return (output_height() + 1) / 2; }  // of one image
  int64_t tile_columns() const { return (output_width() + 1) / 2; }
  // From one place of transformed weights to the next: one cache line more than they are, as places
  // a power of two apart would compete for the same lines of a cache.
  int64_t place_stride() const { return inputs * outputs + 16; }
};

// weight [outputs, inputs, 3, 3] to transformed [16, inputs, outputs], places place_stride() apart.
void transform_weights(const Convolution& shape, const float* weight, float* transformed,
                       const Executor& executor);
// The same of a convolution that takes the gradient of this one's output to that of its input:
// [16, outputs, inputs].
void transform_weights_back(const Convolution& shape, const float* weight, float* transformed,
                            const Executor& executor);

// Convolutions of one input, or several whose outputs are added up: as many transformed weights in
// a row as there are of the two together, 16 * place_stride() floats each. x [batch, inputs,
// height, width] to y [batch, outputs, ...], which is added to if `add`.
struct Convolutions {
  Convolution shape;
  std::span<const float* const> x;
  const float* transformed;
  std::span<float* const> y;  // one, unless there is one x
  bool add;
};
void convolve(const Convolutions& problem, const Executor& executor, Isa isa = best_isa());

// Gradients of the weights of convolutions of one input, from those of their outputs.
struct WeightGradients {
  Convolution shape;
  const float* x;
  std::span<const float* const> grads;
  float* scratch;
  std::span<float* const> towards_weights;
};
// Room that it needs, in floats.
int64_t weight_gradient_scratch(const Convolution& shape, int64_t count);
void weight_gradients(const WeightGradients& problem, const Executor& executor,
                      Isa isa = best_isa());

}  // namespace qcompile

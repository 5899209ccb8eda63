// The element-wise half of a quadratic block, act(BN(BN_a(a)·BN_b(b) + BN_c(c))), in few passes.
//
// Everything between what the branches computed and the output is a function of one element and of
// its channel's constants; a batch norm adds two sums over its channel. So one task takes one
// channel (or sixteen where channels are adjacent) through all passes, of which all but the first
// read it from the cache. Sums are made in an order that does not depend on the threads.
#pragma once

#include <cstdint>

#include "core/isa.h"
#include "core/parallel.h"

namespace qcompile {

enum class Product { kNone, kSquare, kPair };  // a, a·a, a·b; and c is added where there is one
enum class Activation { kNone, kRelu, kGelu, kGeluTanh, kSilu, kSigmoid, kTanh };
enum class Norm { kNone, kFixed, kBatch };  // kBatch: by the statistics of what it takes

constexpr int kMostBranches = 3;
constexpr int kMostSlots = kMostBranches + 1;

// A tensor [outer, channels, inner], contiguous.
struct BlockShape {
  int64_t outer;
  int64_t channels;
  int64_t inner;

  int64_t count() const { return outer * inner; }  // elements of one channel
};

// Slots are the branches that there are, a, b, c, and then the combination.
struct Block {
  BlockShape shape;
  Product product = Product::kNone;
  bool has_c = false;
  Activation activation = Activation::kNone;
  Norm norms[kMostSlots] = {};
  int64_t pool_width = 0;  // of planes that end in a max-pooling of 2x2; zero if there is none

  int branches() const { return 1 + (product == Product::kPair) + has_c; }
  int slots() const { return branches() + 1; }
  bool outer() const { return norms[branches()] != Norm::kNone; }
  bool normalises_branches() const {
    bool any = false;
    for (int slot = 0; slot < branches(); ++slot) any = any || norms[slot] != Norm::kNone;
    return any;
  }
  BlockShape output_shape() const {
    const int64_t of_four = pool_width > 0 ? 4 : 1;
    if (shape.inner > 1) return {shape.outer, shape.channels, shape.inner / of_four};
    return {shape.outer / of_four, shape.channels, 1};
  }
  // Whether the planes, [lines, pool_width] each, can be pooled: sizes are even and two lines fit
  // a cache. The activation is then none or ReLU.
  bool poolable(int64_t lines) const;
};

// Of each slot, [slots, channels]; read where there is a batch norm.
template <typename T>
struct Constants {
  T* mean;
  T* rstd;  // one over the deviation
  const T* weight;
  const T* bias;
};

struct Forward {
  Block block;  // whose activation is none or ReLU
  const float* values[kMostBranches];
  Constants<float> constants;  // mean and rstd of kBatch are written
  float* running_mean;         // [slots, channels], of kBatch updated
  float* running_variance;
  double momentum[kMostSlots];
  double eps[kMostSlots];
  float* output;  // may be values[0], unless pooled
};

// Rounds as torch's batch norm of contiguous float32 does: sums in double, squares in float.
void forward(const Forward& problem, const Executor& executor, Isa isa = best_isa());

// S: float, double, or uint16_t for bfloat16; T: what is computed in, double for double.
template <typename S, typename T>
struct Backward {
  Block block;
  const S* grad;  // of the output
  const S* values[kMostBranches];
  Constants<T> constants;
  T* plain;                   // [slots, channels]: sums of what reaches a batch norm from behind
  T* projected;               // the same times the normalised values
  S* outputs[kMostBranches];  // gradients of values, or null; each may be that value itself
};

// Writes the sums of all batch norms.
template <typename S, typename T>
void backward_sums(const Backward<S, T>& problem, const Executor& executor, Isa isa = best_isa());

// Writes the outputs that are wanted, after backward_sums. Outputs over values have to be written
// all at once.
template <typename S, typename T>
void backward_write(const Backward<S, T>& problem, const Executor& executor, Isa isa = best_isa());

}  // namespace qcompile

// What the passes over a task's channels share, to be inlined once per instruction set.
#pragma once

#include "quadratic/activations.h"
#include "quadratic/pool.h"
#include "quadratic/walk.h"

namespace qcompile {

template <typename T>
QC_INLINE Vector<double> to_double(Vector<T> lanes) {
  return __builtin_convertvector(lanes, Vector<double>);
}

template <typename T>
QC_INLINE Vector<T> all(T value) {
  return Vector<T>{} + value;
}

// Sums of lanes: within a span in T, of all spans in double.
struct Sums {
  template <typename T>
  QC_INLINE void add(Vector<T> of_plain, Vector<T> of_projected) {
    plain += to_double<T>(of_plain);
    projected += to_double<T>(of_projected);
  }

  Vector<double> plain{};
  Vector<double> projected{};
};

// A batch norm's constants for a task.
template <typename T>
struct Slot {
  Norm norm = Norm::kNone;
  Vector<T> mean{};
  Vector<T> rstd{};
  Vector<T> scale = all(T(1));
  Vector<T> shift{};
  Vector<T> plain{};  // means of sums: what a batch norm takes from the gradient
  Vector<T> projected{};

  QC_INLINE Vector<T> finish(Vector<T> x) const { return x * scale + shift; }
  QC_INLINE Vector<T> hat(Vector<T> x) const { return (x - mean) * rstd; }
  // The gradient of what a batch norm took, x, from that of what it gave.
  QC_INLINE Vector<T> through(Vector<T> grad, Vector<T> x) const {
    if (norm == Norm::kBatch) grad = grad - plain - hat(x) * projected;
    return norm == Norm::kNone ? grad : grad * scale;
  }
};

template <typename T>
QC_INLINE void read_slot(const Walk& walk, const Block& block, const Constants<T>& constants,
                         int slot, Slot<T>& to) {
  to.norm = block.norms[slot];
  if (to.norm == Norm::kNone) return;
  const int64_t at = slot * block.shape.channels;
  to.mean = walk.lanes(constants.mean + at);
  to.rstd = walk.lanes(constants.rstd + at);
  to.scale = to.rstd * walk.lanes(constants.weight + at);
  to.shift = walk.lanes(constants.bias + at) - to.mean * to.scale;
}

template <typename T>
QC_INLINE Vector<T> combine(const Block& block, Vector<T> a, Vector<T> b, Vector<T> c) {
  Vector<T> y = a;
  if (block.product == Product::kPair) y = a * b;
  if (block.product == Product::kSquare) y = a * a;
  return block.has_c ? y + c : y;
}

// Lets what belongs to nobody count for nothing.
template <typename T>
QC_INLINE void clear(Chunk<T>& values, const Span& span) {
  for (int64_t i = span.present; i < span.rows * kLanes; ++i) values.at[i] = 0;
}

// One span of all tensors of the backward pass.
template <typename T>
struct Buffers {
  Chunk<T> values[kMostBranches];  // a, b, c; those that are absent are never read
  Chunk<T> grad;
  Chunk<T> y;  // the combination
  Chunk<T> z;  // what the activation takes
  Chunk<T> pooled;
};

template <typename S, typename T>
class BackwardTask {
 public:
  QC_INLINE BackwardTask(const Backward<S, T>& problem, int64_t task)
      : problem_(problem),
        block_(problem.block),
        walk_(block_.shape, task, block_.pool_width),
        outer_(block_.branches()),
        c_(outer_ - 1) {
    for (int slot = 0; slot <= outer_; ++slot) {
      read_slot(walk_, block_, problem_.constants, slot, slots_[slot]);
    }
  }

  // The sums that batch norms need, those of the combination's first, or else the outputs.
  QC_INLINE void run(bool sums) {
    bool wanted[] = {sums && block_.outer(), sums && block_.normalises_branches(), !sums};
    if (!sums) {
      for (int slot = 0; slot <= outer_; ++slot) read_means(slot);
    }
    // One loop for all passes, so that their code is there once.
    for (int pass = kCombination; pass <= kOutputs; ++pass) {
      if (!wanted[pass]) continue;
      Sums found[kMostBranches];
      walk_.for_spans([&](const Span& span) QC_INLINE_LAMBDA {
        evaluate(span, pass != kCombination);
        if (pass == kCombination) add_combination(span, found[0]);
        if (pass == kBranches) add_branches(span, found);
        if (pass == kOutputs) write(span);
      });
      if (pass == kCombination) {
        store_sums(outer_, found[0]);
        read_means(outer_);
      }
      if (pass != kBranches) continue;
      for (int i = 0; i < outer_; ++i) {
        if (slots_[i].norm != Norm::kNone) store_sums(i, found[i]);
      }
    }
  }

 private:
  enum Pass { kCombination, kBranches, kOutputs };

  QC_INLINE void read_means(int slot) {
    if (slots_[slot].norm != Norm::kBatch) return;
    const int64_t at = slot * block_.shape.channels;
    const T share = 1 / static_cast<T>(block_.shape.count());
    slots_[slot].plain = walk_.lanes(problem_.plain + at) * share;
    slots_[slot].projected = walk_.lanes(problem_.projected + at) * share;
  }

  QC_INLINE void store_sums(int slot, const Sums& sums) {
    const int64_t at = slot * block_.shape.channels;
    walk_.store_constants(sums.plain, problem_.plain + at);
    walk_.store_constants(sums.projected, problem_.projected + at);
  }

  // Reads a span; buffers_.grad becomes the gradient of the combination, or, unless `through`, of
  // what its batch norm gave.
  QC_INLINE void evaluate(const Span& span, bool through) {
    const int64_t inner = block_.shape.inner;
    for (int i = 0; i < outer_; ++i) {
      walk_.load(problem_.values[i], span, inner, buffers_.values[i]);
    }
    const bool pooled = block_.pool_width > 0;
    if (!pooled) walk_.load(problem_.grad, span, inner, buffers_.grad);
    if (!pooled && !block_.outer() && block_.activation == Activation::kNone) return;
    const Slot<T> outer = slots_[outer_];
    for (int64_t r = 0; r < span.rows; ++r) {
      const Vector<T> y = combine<T>(block_, value(0, r), value(1, r), value(c_, r));
      buffers_.y.set(r, y);
      buffers_.z.set(r, outer.finish(y));
    }
    if (pooled) {
      const Span small = walk_.pooled(span);
      walk_.load(problem_.grad, small, block_.output_shape().inner, buffers_.pooled);
      unpool(buffers_.pooled, buffers_.z, block_.activation == Activation::kRelu, small.size,
             block_.pool_width, walk_.pitch(), buffers_.grad);
      clear(buffers_.grad, span);
    }
    activate_backward(block_.activation, buffers_.grad, buffers_.z, span.rows);
    if (!through || !block_.outer()) return;
    for (int64_t r = 0; r < span.rows; ++r) {
      buffers_.grad.set(r, outer.through(buffers_.grad.row(r), buffers_.y.row(r)));
    }
    clear(buffers_.grad, span);
  }

  // What a branch's batch norm gave.
  QC_INLINE Vector<T> value(int i, int64_t r) const {
    return slots_[i].finish(buffers_.values[i].row(r));
  }

  // The gradients of what the branches' batch norms gave, of one row.
  QC_INLINE void towards(int64_t r, Vector<T>* found) const {
    const Vector<T> grad = buffers_.grad.row(r);
    found[0] = found[c_] = grad;
    if (block_.product == Product::kPair) {
      found[0] = grad * value(1, r);
      found[1] = grad * value(0, r);
    } else if (block_.product == Product::kSquare) {
      found[0] = 2 * grad * value(0, r);
    }
  }

  QC_INLINE void add_combination(const Span& span, Sums& sums) const {
    Vector<T> plain{}, projected{};
    const Slot<T> outer = slots_[outer_];
    for (int64_t r = 0; r < span.rows; ++r) {
      const Vector<T> grad = buffers_.grad.row(r);
      plain += grad;
      projected += grad * outer.hat(buffers_.y.row(r));
    }
    sums.template add<T>(plain, projected);
  }

  QC_INLINE void add_branches(const Span& span, Sums* sums) const {
    Vector<T> plain[kMostBranches] = {}, projected[kMostBranches] = {};
    for (int64_t r = 0; r < span.rows; ++r) {
      Vector<T> found[kMostBranches];
      towards(r, found);
      for (int i = 0; i < outer_; ++i) {
        plain[i] += found[i];
        projected[i] += found[i] * slots_[i].hat(buffers_.values[i].row(r));
      }
    }
    for (int i = 0; i < outer_; ++i) sums[i].template add<T>(plain[i], projected[i]);
  }

  QC_INLINE void write(const Span& span) {
    for (int64_t r = 0; r < span.rows; ++r) {
      Vector<T> found[kMostBranches];
      towards(r, found);
      for (int i = 0; i < outer_; ++i) {
        const Vector<T> x = buffers_.values[i].row(r);
        buffers_.values[i].set(r, slots_[i].through(found[i], x));
      }
    }
    for (int i = 0; i < outer_; ++i) {
      if (problem_.outputs[i] != nullptr) {
        walk_.store(buffers_.values[i], span, block_.shape.inner, problem_.outputs[i]);
      }
    }
  }

  const Backward<S, T>& problem_;
  const Block& block_;
  Walk walk_;
  int outer_;
  int c_;
  Slot<T> slots_[kMostSlots];
  Buffers<T> buffers_ = {};
};

}  // namespace qcompile

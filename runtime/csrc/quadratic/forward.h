// The forward pass of one task, to be inlined once per instruction set.
#pragma once

#include <cmath>

#include "core/buffer.h"
#include "quadratic/passes.h"

namespace qcompile {

// One rounding, where an instruction set has it in one instruction and where not.
QC_INLINE void fuse(float* x, const float* scale, const float* shift) {
  for (int i = 0; i < kLanes; ++i) x[i] = __builtin_fmaf(x[i], scale[i], shift[i]);
}

class ForwardTask {
 public:
  QC_INLINE ForwardTask(const Forward& problem, int64_t task)
      : problem_(problem), block_(problem.block), walk_(block_.shape, task, block_.pool_width) {}

  QC_INLINE void run() {
    const int outer = block_.branches();
    for (int slot = 0; slot < outer; ++slot) {
      if (block_.norms[slot] == Norm::kBatch) take_moments(slot, problem_.values[slot]);
      read_affine(slot);
    }
    if (block_.norms[outer] != Norm::kBatch) {
      read_affine(outer);
      walk_.for_spans([&](const Span& span) QC_INLINE_LAMBDA {
        combine_into(values_[0], span);
        finish(span);
      });
      return;
    }
    // The combination of one task's channels stays in the cache between its three passes.
    thread_local Buffer<float> kept;
    y_ = kept.resize(walk_.rows() * kLanes);
    walk_.for_spans([&](const Span& span) QC_INLINE_LAMBDA {
      combine_into(values_[0], span);
      std::memcpy(of_combination(span), values_[0].at, bytes(span));
    });
    take_moments(outer, nullptr);
    read_affine(outer);
    walk_.for_spans([&](const Span& span) QC_INLINE_LAMBDA {
      std::memcpy(values_[0].at, of_combination(span), bytes(span));
      finish(span);
    });
  }

 private:
  struct Affine {
    bool present = false;
    alignas(64) float scale[kLanes];
    alignas(64) float shift[kLanes];
  };

  static size_t bytes(const Span& span) {
    return static_cast<size_t>(span.rows * kLanes) * sizeof(float);
  }
  float* of_combination(const Span& span) const { return y_ + span.begin * walk_.pitch(); }

  QC_INLINE void read_affine(int slot) {
    Affine& affine = affine_[slot];
    affine.present = block_.norms[slot] != Norm::kNone;
    if (!affine.present) return;
    const int64_t at = slot * block_.shape.channels;
    const Constants<float>& constants = problem_.constants;
    const Vector<float> scale =
        walk_.lanes(constants.rstd + at) * walk_.lanes(constants.weight + at);
    store_vector(affine.scale, scale);
    alignas(64) float mean[kLanes];
    store_vector(mean, -walk_.lanes(constants.mean + at));
    store_vector(affine.shift, walk_.lanes(constants.bias + at));
    fuse(mean, affine.scale, affine.shift);
    std::memcpy(affine.shift, mean, sizeof mean);
  }

  QC_INLINE void combine_into(Chunk<float>& y, const Span& span) {
    const int branches = block_.branches();
    for (int i = 0; i < branches; ++i) {
      walk_.load(problem_.values[i], span, block_.shape.inner, values_[i]);
      normalise(affine_[i], values_[i], span.rows);
    }
    for (int64_t r = 0; r < span.rows; ++r) {
      y.set(r, combine<float>(block_, values_[0].row(r), values_[1].row(r),
                              values_[branches - 1].row(r)));
    }
    clear(y, span);
  }

  QC_INLINE void normalise(const Affine& affine, Chunk<float>& values, int64_t rows) {
    if (!affine.present) return;
    for (int64_t r = 0; r < rows; ++r) fuse(values.at + r * kLanes, affine.scale, affine.shift);
  }

  // The end of a block, from its combination in values_[0].
  QC_INLINE void finish(const Span& span) {
    Chunk<float>& y = values_[0];
    normalise(affine_[block_.branches()], y, span.rows);
    if (block_.activation == Activation::kRelu) {
      for (int64_t i = 0; i < span.rows * kLanes; ++i) y.at[i] = y.at[i] < 0 ? 0 : y.at[i];
    }
    if (block_.pool_width == 0) {
      walk_.store(y, span, block_.shape.inner, problem_.output);
      return;
    }
    const Span small = walk_.pooled(span);
    pool(y, small.size, block_.pool_width, walk_.pitch(), values_[1]);
    walk_.store(values_[1], small, block_.output_shape().inner, problem_.output);
  }

  // Mean and one over the deviation of a slot, and its running statistics; of the combination if
  // `from` is null.
  QC_INLINE void take_moments(int slot, const float* from) {
    const auto read = [&](const Span& span) QC_INLINE_LAMBDA {
      if (from == nullptr) {
        std::memcpy(values_[0].at, of_combination(span), bytes(span));
      } else {
        walk_.load(from, span, block_.shape.inner, values_[0]);
      }
    };
    Vector<double> sum{};
    walk_.for_spans([&](const Span& span) QC_INLINE_LAMBDA {
      read(span);
      for (int64_t r = 0; r < span.rows; ++r) sum += to_double<float>(values_[0].row(r));
    });
    const double count = static_cast<double>(block_.shape.count());
    const int64_t at = slot * block_.shape.channels;
    walk_.store_constants(sum, problem_.constants.mean + at, count);
    const Vector<float> mean = walk_.lanes(problem_.constants.mean + at);
    Vector<double> squares{};
    walk_.for_spans([&](const Span& span) QC_INLINE_LAMBDA {
      read(span);
      for (int64_t r = 0; r < span.rows; ++r) {
        const Vector<float> off = values_[0].row(r) - mean;
        values_[0].set(r, off * off);
      }
      clear(values_[0], span);
      for (int64_t r = 0; r < span.rows; ++r) squares += to_double<float>(values_[0].row(r));
    });
    walk_.store_constants(squares, problem_.constants.rstd + at);
    for (int64_t i = 0; i < walk_.channels(); ++i) update(slot, at + walk_.first() + i);
  }

  // From the sum of squares, in rstd's place.
  QC_INLINE void update(int slot, int64_t at) {
    const int64_t count = block_.shape.count();
    float& rstd = problem_.constants.rstd[at];
    const float share = static_cast<float>(problem_.momentum[slot]);
    const float rest = static_cast<float>(1 - problem_.momentum[slot]);
    const float unbiased = rstd / static_cast<float>(count - 1);
    float& mean = problem_.running_mean[at];
    float& variance = problem_.running_variance[at];
    mean = share * problem_.constants.mean[at] + rest * mean;
    variance = __builtin_fmaf(share, unbiased, rest * variance);
    rstd = static_cast<float>(
        1 / std::sqrt(static_cast<double>(rstd / static_cast<float>(count)) + problem_.eps[slot]));
  }

  const Forward& problem_;
  const Block& block_;
  Walk walk_;
  Affine affine_[kMostSlots];
  float* y_ = nullptr;  // of all spans
  Chunk<float> values_[kMostBranches] = {};
};

}  // namespace qcompile

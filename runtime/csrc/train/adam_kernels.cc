#include "train/adam_kernels.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace qcompile {
namespace {

constexpr int64_t kChunk = 32;

// √second, at most kGreatestRoot: beyond it a weight moves by nothing that matters, and products of
// two denominators stay finite.
constexpr float kGreatestRoot = 1e17f;
// From here on products of two denominators are normal numbers.
constexpr float kPairedEpsilon = 1e-18f;

// rate [count] = Σ weight / (root · spread + ε) over the terms of a step. Divisions are what idle
// rows cost, so two terms share one.
QC_INLINE void idle_rates(const float* root, int64_t count, const IdleTable& table,
                          const IdleStep& step, float* rate) {
  for (int64_t j = 0; j < count; ++j) rate[j] = 0;
  const IdleTerm* term = table.terms.data() + step.first_term;
  const IdleTerm* end = term + step.terms;
  const float epsilon = table.epsilon;
  for (; end - term >= 2 && epsilon >= kPairedEpsilon; term += 2) {
    const IdleTerm a = term[0], b = term[1];
    for (int64_t j = 0; j < count; ++j) {
      const float below_a = root[j] * a.spread + epsilon;
      const float below_b = root[j] * b.spread + epsilon;
      rate[j] += (a.weight * below_b + b.weight * below_a) / (below_a * below_b);
    }
  }
  for (; term < end; ++term) {
    const IdleTerm a = *term;
    for (int64_t j = 0; j < count; ++j) rate[j] += a.weight / (root[j] * a.spread + epsilon);
  }
}

// Elements [begin, begin + count) of a row.
template <Storage kStorage>
QC_INLINE void idle_chunk(const AdamMatrix& matrix, int64_t row, int64_t begin, int64_t count,
                          const IdleTable& table, const IdleStep& step, uint32_t key) {
  const auto value = weight_cells<kStorage>(matrix.weight, row);
  const int64_t at = row * matrix.weight.depth;
  const auto first = average_cells<kStorage>(matrix.first, at);
  const auto second = average_cells<kStorage>(matrix.second, at);
  float momentum[kChunk], square[kChunk], root[kChunk], rate[kChunk];
  uint32_t moving = 0;
  for (int64_t j = 0; j < count; ++j) {
    momentum[j] = first.load(begin + j);
    square[j] = second.load(begin + j);
    moving |= std::bit_cast<uint32_t>(momentum[j]) | std::bit_cast<uint32_t>(square[j]);
  }
  // No gradient so far.
  if (moving == 0 && step.shrink == 1) return;
  for (int64_t j = 0; j < count; ++j) {
    const float exact = std::sqrt(square[j]);
    root[j] = exact < kGreatestRoot ? exact : kGreatestRoot;
  }
  idle_rates(root, count, table, step, rate);
  const float shrink = step.shrink;
  const float first_decay = step.first_decay;
  const float second_decay = step.second_decay;
#pragma GCC ivdep
  for (int64_t j = 0; j < count; ++j) {
    const int64_t i = begin + j;
    const uint32_t random = element_bits(key, static_cast<uint32_t>(i));
    value.store(i, value.load(i) * shrink - momentum[j] * rate[j], 0);
    first.store(i, momentum[j] * first_decay, random & 0xffffu);
    second.store(i, square[j] * second_decay, random >> 16);
  }
}

template <Storage kStorage>
QC_INLINE void idle_row(const AdamMatrix& matrix, int64_t row, const IdleTable& table,
                        const IdleStep& step, uint32_t key) {
  const int64_t depth = matrix.weight.depth;
  int64_t begin = 0;
  for (; begin + kChunk <= depth; begin += kChunk) {
    idle_chunk<kStorage>(matrix, row, begin, kChunk, table, step, key);
  }
  if (begin < depth) {
    idle_chunk<kStorage>(matrix, row, begin, depth - begin, table, step, key);
  }
}

template <Storage kStorage>
QC_INLINE void step_row(const AdamMatrix& matrix, int64_t row, const float* gradient,
                        const GradientStep& step, uint32_t key) {
  const auto value = weight_cells<kStorage>(matrix.weight, row);
  const int64_t at = row * matrix.weight.depth;
  const auto first = average_cells<kStorage>(matrix.first, at);
  const auto second = average_cells<kStorage>(matrix.second, at);
#pragma GCC ivdep
  for (int64_t j = 0; j < matrix.weight.depth; ++j) {
    const uint32_t random = element_bits(key, static_cast<uint32_t>(j));
    const float g = gradient[j];
    const float m = first.load(j) + (g - first.load(j)) * step.first_rate;
    const float v = second.load(j) * step.second_decay + g * g * step.second_rate;
    const float denominator = std::sqrt(v) * step.second_scale + step.epsilon;
    value.store(j, value.load(j) * step.shrink - step.step_size * m / denominator, 0);
    first.store(j, m, random & 0xffffu);
    second.store(j, v, random >> 16);
  }
}

template <Storage kStorage>
QC_INLINE void prefetch(const AdamMatrix& matrix, const RowBlock& block, int64_t next) {
  if (next >= block.count) return;
  const int64_t row = block.ids[next];
  const int64_t depth = matrix.weight.depth;
  if constexpr (kStorage == Storage::kFloat32) {
    prefetch_row(static_cast<const float*>(matrix.weight.value), row, depth);
    prefetch_row(static_cast<const float*>(matrix.first), row, depth);
    prefetch_row(static_cast<const float*>(matrix.second), row, depth);
  } else {
    prefetch_row(static_cast<const uint16_t*>(matrix.weight.value), row, depth);
    prefetch_row(matrix.weight.residual, row, depth);
    prefetch_row(static_cast<const uint16_t*>(matrix.first), row, depth);
    prefetch_row(static_cast<const uint16_t*>(matrix.second), row, depth);
  }
}

template <Storage kStorage>
QC_INLINE void idle_body(const AdamMatrix& matrix, const RowBlock& block, const IdleTable& table) {
  for (int64_t i = 0; i < block.count; ++i) {
    prefetch<kStorage>(matrix, block, i + 1);
    const uint32_t row = block.ids[i];
    idle_row<kStorage>(matrix, row, table, table.by_missed[block.missed[i]],
                       row_key(block.steps, 0, row));
  }
}

template <Storage kStorage>
QC_INLINE void step_body(const AdamMatrix& matrix, const RowBlock& block, const IdleTable& table,
                         const float* gradients, const GradientStep& step) {
  for (int64_t i = 0; i < block.count; ++i) {
    prefetch<kStorage>(matrix, block, i + 1);
    const uint32_t row = block.ids[i];
    if (block.missed[i] > 0) {
      idle_row<kStorage>(matrix, row, table, table.by_missed[block.missed[i]],
                         row_key(block.steps - 1, 0, row));
    }
    step_row<kStorage>(matrix, row, gradients + i * matrix.weight.depth, step,
                       row_key(block.steps, 1, row));
  }
}

#define QC_ADAM_KERNELS(name, attribute)                                        \
  template <Storage kStorage>                                                   \
  struct name {                                                                 \
    attribute static void idle(const AdamMatrix& matrix, const RowBlock& block, \
                               const IdleTable& table) {                        \
      idle_body<kStorage>(matrix, block, table);                                \
    }                                                                           \
    attribute static void step(const AdamMatrix& matrix, const RowBlock& block, \
                               const IdleTable& table, const float* gradients,  \
                               const GradientStep& step) {                      \
      step_body<kStorage>(matrix, block, table, gradients, step);               \
    }                                                                           \
    static constexpr AdamKernels kTable = {idle, step};                         \
  };

QC_ADAM_KERNELS(Scalar, )
QC_ADAM_KERNELS(Avx2, QC_AVX2)
QC_ADAM_KERNELS(Avx512, QC_AVX512)
#undef QC_ADAM_KERNELS

template <Storage kStorage>
const AdamKernels& kernels_for(Isa isa) {
  if (isa >= Isa::kAvx512) return Avx512<kStorage>::kTable;
  return isa == Isa::kAvx2 ? Avx2<kStorage>::kTable : Scalar<kStorage>::kTable;
}

}  // namespace

const AdamKernels& adam_kernels(Storage storage, Isa isa) {
  return storage == Storage::kFloat32 ? kernels_for<Storage::kFloat32>(isa)
                                      : kernels_for<Storage::kBFloat16>(isa);
}

}  // namespace qcompile

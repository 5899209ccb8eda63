#include "train/adam_kernels.h"

#include <algorithm>
#include <cmath>

namespace qcompile {
namespace {

constexpr int64_t kChunk = 64;

template <Storage kStorage>
QC_INLINE void idle_row(const AdamMatrix& matrix, int64_t row, const IdleTable& table,
                        const IdleStep& step, uint32_t key) {
  const auto value = weight_cells<kStorage>(matrix.weight, row);
  const int64_t at = row * matrix.weight.depth;
  const auto first = average_cells<kStorage>(matrix.first, at);
  const auto second = average_cells<kStorage>(matrix.second, at);
  for (int64_t begin = 0; begin < matrix.weight.depth; begin += kChunk) {
    const int64_t count = std::min(kChunk, matrix.weight.depth - begin);
    float root[kChunk];
    float rate[kChunk];
    for (int64_t j = 0; j < count; ++j) root[j] = std::sqrt(second.load(begin + j));
    for (int64_t j = 0; j < count; ++j) rate[j] = 0;
    for (uint32_t t = 0; t < step.terms; ++t) {
      const IdleTerm term = table.terms[step.first_term + t];
      for (int64_t j = 0; j < count; ++j) {
        rate[j] += term.weight / (root[j] * term.spread + table.epsilon);
      }
    }
#pragma GCC ivdep
    for (int64_t j = 0; j < count; ++j) {
      const int64_t i = begin + j;
      const uint32_t random = element_bits(key, static_cast<uint32_t>(i));
      const float momentum = first.load(i);
      value.store(i, value.load(i) * step.shrink - momentum * rate[j], 0);
      first.store(i, momentum * step.first_decay, random & 0xffffu);
      second.store(i, second.load(i) * step.second_decay, random >> 16);
    }
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

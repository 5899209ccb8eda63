#include "train/row_sgd.h"

#include <utility>

namespace qcompile {
namespace {

template <Storage kStorage, bool kBuffer>
QC_INLINE void idle_row(const SgdMatrix& matrix, int64_t row, const SgdIdleStep& step,
                        uint32_t key) {
  const auto value = weight_cells<kStorage>(matrix.weight, row);
  const int64_t depth = matrix.weight.depth;
  const auto buffer = average_cells<kStorage>(matrix.buffer, kBuffer ? row * depth : 0);
#pragma GCC ivdep
  for (int64_t j = 0; j < depth; ++j) {
    const float w = value.load(j);
    if constexpr (kBuffer) {
      const uint32_t random = element_bits(key, static_cast<uint32_t>(j));
      const float b = buffer.load(j);
      value.store(j, step.ww * w + step.wb * b, 0);
      buffer.store(j, step.bw * w + step.bb * b, random & 0xffffu);
    } else {
      value.store(j, step.ww * w, 0);
    }
  }
}

template <Storage kStorage, bool kBuffer>
QC_INLINE void step_row(const SgdMatrix& matrix, int64_t row, const float* gradient,
                        const SgdStep& step, uint32_t key) {
  const auto value = weight_cells<kStorage>(matrix.weight, row);
  const int64_t depth = matrix.weight.depth;
  const auto buffer = average_cells<kStorage>(matrix.buffer, kBuffer ? row * depth : 0);
#pragma GCC ivdep
  for (int64_t j = 0; j < depth; ++j) {
    const float w = value.load(j);
    float d = gradient[j] + step.weight_decay * w;
    if constexpr (kBuffer) {
      const uint32_t random = element_bits(key, static_cast<uint32_t>(j));
      const float b = buffer.load(j);
      d += step.momentum * b;
      buffer.store(j, step.momentum == 0 ? b : d, random & 0xffffu);
    }
    value.store(j, w - step.learning_rate * d, 0);
  }
}

template <Storage kStorage, bool kBuffer>
QC_INLINE void prefetch(const SgdMatrix& matrix, const RowBlock& block, int64_t next) {
  using Cell = std::conditional_t<kStorage == Storage::kFloat32, float, uint16_t>;
  if (next >= block.count) return;
  const int64_t row = block.ids[next];
  const int64_t depth = matrix.weight.depth;
  prefetch_row(static_cast<const Cell*>(matrix.weight.value), row, depth);
  if constexpr (kBuffer) prefetch_row(static_cast<const Cell*>(matrix.buffer), row, depth);
  if constexpr (kStorage == Storage::kBFloat16) prefetch_row(matrix.weight.residual, row, depth);
}

template <Storage kStorage, bool kBuffer>
QC_INLINE void idle_body(const SgdMatrix& matrix, const RowBlock& block,
                         const SgdIdleTable& table) {
  for (int64_t i = 0; i < block.count; ++i) {
    prefetch<kStorage, kBuffer>(matrix, block, i + 1);
    const uint32_t row = block.ids[i];
    idle_row<kStorage, kBuffer>(matrix, row, table.by_missed[block.missed[i]],
                                row_key(block.steps, 0, row));
  }
}

template <Storage kStorage, bool kBuffer>
QC_INLINE void step_body(const SgdMatrix& matrix, const RowBlock& block, const SgdIdleTable& table,
                         const float* gradients, const SgdStep& step) {
  for (int64_t i = 0; i < block.count; ++i) {
    prefetch<kStorage, kBuffer>(matrix, block, i + 1);
    const uint32_t row = block.ids[i];
    if (block.missed[i] > 0 && !table.still) {
      idle_row<kStorage, kBuffer>(matrix, row, table.by_missed[block.missed[i]],
                                  row_key(block.steps - 1, 0, row));
    }
    step_row<kStorage, kBuffer>(matrix, row, gradients + i * matrix.weight.depth, step,
                                row_key(block.steps, 1, row));
  }
}

#define QC_SGD_KERNELS(name, attribute)                                           \
  template <Storage kStorage, bool kBuffer>                                       \
  struct name {                                                                   \
    attribute static void idle(const SgdMatrix& matrix, const RowBlock& block,    \
                               const SgdIdleTable& table) {                       \
      idle_body<kStorage, kBuffer>(matrix, block, table);                         \
    }                                                                             \
    attribute static void step(const SgdMatrix& matrix, const RowBlock& block,    \
                               const SgdIdleTable& table, const float* gradients, \
                               const SgdStep& step) {                             \
      step_body<kStorage, kBuffer>(matrix, block, table, gradients, step);        \
    }                                                                             \
    static constexpr SgdKernels kTable = {idle, step};                            \
  };

QC_SGD_KERNELS(Scalar, )
QC_SGD_KERNELS(Avx2, QC_AVX2)
QC_SGD_KERNELS(Avx512, QC_AVX512)
#undef QC_SGD_KERNELS

template <Storage kStorage, bool kBuffer>
const SgdKernels& kernels_for(Isa isa) {
  if (isa >= Isa::kAvx512) return Avx512<kStorage, kBuffer>::kTable;
  return isa == Isa::kAvx2 ? Avx2<kStorage, kBuffer>::kTable : Scalar<kStorage, kBuffer>::kTable;
}

}  // namespace

const SgdKernels& sgd_kernels(Storage storage, bool buffer, Isa isa) {
  if (storage == Storage::kFloat32) {
    return buffer ? kernels_for<Storage::kFloat32, true>(isa)
                  : kernels_for<Storage::kFloat32, false>(isa);
  }
  return buffer ? kernels_for<Storage::kBFloat16, true>(isa)
                : kernels_for<Storage::kBFloat16, false>(isa);
}

std::shared_ptr<const SgdIdleTable> SgdRule::idle_table(std::span<const SgdRates> history,
                                                        int64_t) {
  SgdIdleTable table;
  table.by_missed.resize(history.size() + 1);
  double ww = 1, wb = 0, bw = 0, bb = 1;
  for (size_t i = history.size(); i-- > 0;) {
    // The product of all later steps, after this one: w' = w (1 − a λ) − a μ b, a being the
    // learning rate, and b' = λ w + μ b, or b without momentum.
    const SgdRates& rates = history[i];
    const double from_w = 1.0 - rates.learning_rate * rates.weight_decay;
    const double from_b = -rates.learning_rate * rates.momentum;
    const double to_b = rates.momentum == 0 ? 0.0 : rates.weight_decay;
    const double kept = rates.momentum == 0 ? 1.0 : rates.momentum;
    const double old_ww = ww, old_bw = bw;
    ww = old_ww * from_w + wb * to_b;
    wb = old_ww * from_b + wb * kept;
    bw = old_bw * from_w + bb * to_b;
    bb = old_bw * from_b + bb * kept;
    table.by_missed[history.size() - i] = {static_cast<float>(ww), static_cast<float>(wb),
                                           static_cast<float>(bw), static_cast<float>(bb)};
    table.still =
        table.still && rates.momentum == 0 && rates.weight_decay * rates.learning_rate == 0;
  }
  return std::make_shared<const SgdIdleTable>(std::move(table));
}

void SgdRule::step(const RowBlock& block, const IdleTable& table, const float* gradients) const {
  kernels_->step(matrix_, block, table, gradients,
                 {.learning_rate = static_cast<float>(rates_.learning_rate),
                  .momentum = static_cast<float>(rates_.momentum),
                  .weight_decay = static_cast<float>(rates_.weight_decay)});
}

}  // namespace qcompile

#include "train/row_sums.h"

#include <cstring>

#include "core/lanes.h"
#include "train/storage.h"

namespace qcompile {
namespace {

constexpr int64_t kAhead = 8;  // rows fetched before they are needed; they lie anywhere in memory
constexpr int64_t kLineBytes = 64;

QC_INLINE float widened(float value) { return value; }
QC_INLINE float widened(uint16_t value) { return from_bfloat16(value); }

QC_INLINE Lanes widened_lanes(const float* from) { return load_lanes(from); }

QC_INLINE Lanes widened_lanes(const uint16_t* from) {
  using Halves = uint16_t __attribute__((vector_size(kLanes * sizeof(uint16_t))));
  using Words = uint32_t __attribute__((vector_size(kLanes * sizeof(uint32_t))));
  Halves halves;
  std::memcpy(&halves, from, sizeof halves);
  const Words words = __builtin_convertvector(halves, Words) << 16;
  Lanes lanes;
  std::memcpy(&lanes, &words, sizeof lanes);
  return lanes;
}

template <typename Element>
QC_INLINE void fetch(const Element* row, int64_t size) {
  const char* bytes = reinterpret_cast<const char*>(row);
  for (int64_t at = 0; at < size * static_cast<int64_t>(sizeof(Element)); at += kLineBytes) {
    __builtin_prefetch(bytes + at);
  }
}

// kBlocks accumulators stay in registers over all terms.
template <int kBlocks, typename Element>
QC_INLINE void sum_block(const Element* rows, int64_t depth, const uint32_t* ids,
                         const float* scales, int64_t count, float* sum) {
  Lanes total[kBlocks];
  for (int v = 0; v < kBlocks; ++v) total[v] = load_lanes(sum + v * kLanes);
  for (int64_t i = 0; i < count; ++i) {
    if (i + kAhead < count) fetch(rows + ids[i + kAhead] * depth, kBlocks * kLanes);
    const Element* row = rows + ids[i] * depth;
    for (int v = 0; v < kBlocks; ++v) total[v] += widened_lanes(row + v * kLanes) * scales[i];
  }
  for (int v = 0; v < kBlocks; ++v) store_lanes(sum + v * kLanes, total[v]);
}

template <int kBlocks, typename Element>
QC_INLINE void sum_body(const Element* rows, int64_t depth, const uint32_t* ids,
                        const float* scales, int64_t count, float* sum) {
  int64_t j = 0;
  for (; j + kBlocks * kLanes <= depth; j += kBlocks * kLanes) {
    sum_block<kBlocks>(rows + j, depth, ids, scales, count, sum + j);
  }
  for (; j + kLanes <= depth; j += kLanes) {
    sum_block<1>(rows + j, depth, ids, scales, count, sum + j);
  }
  for (int64_t i = 0; i < count && j < depth; ++i) {
    const Element* row = rows + ids[i] * depth;
    for (int64_t k = j; k < depth; ++k) sum[k] += widened(row[k]) * scales[i];
  }
}

#define QC_ROW_SUM_KERNELS(name, attribute, blocks)                                            \
  struct name {                                                                                \
    attribute static void of_floats(const float* rows, int64_t depth, const uint32_t* ids,     \
                                    const float* scales, int64_t count, float* sum) {          \
      sum_body<blocks>(rows, depth, ids, scales, count, sum);                                  \
    }                                                                                          \
    attribute static void of_bfloats(const uint16_t* rows, int64_t depth, const uint32_t* ids, \
                                     const float* scales, int64_t count, float* sum) {         \
      sum_body<blocks>(rows, depth, ids, scales, count, sum);                                  \
    }                                                                                          \
    static constexpr RowSumKernels kTable = {of_floats, of_bfloats};                           \
  };

QC_ROW_SUM_KERNELS(Scalar, , 2)
QC_ROW_SUM_KERNELS(Avx2, QC_AVX2, 4)
QC_ROW_SUM_KERNELS(Avx512, QC_AVX512, 8)
#undef QC_ROW_SUM_KERNELS

}  // namespace

const RowSumKernels& row_sum_kernels(Isa isa) {
  if (isa >= Isa::kAvx512) return Avx512::kTable;
  return isa == Isa::kAvx2 ? Avx2::kTable : Scalar::kTable;
}

}  // namespace qcompile

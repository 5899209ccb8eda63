#include "index/cell_kernels.h"

#include <limits>

#include "core/lanes.h"

namespace qcompile {
namespace {

QC_INLINE void peaks_of(const float* scores, int64_t blocks, int64_t groups, float* peaks) {
  for (int64_t group = 0; group < groups; ++group) {
    Lanes peak = all_lanes(-std::numeric_limits<float>::infinity());
    for (int64_t block = group; block < blocks; block += groups) {
      const Lanes score = load_lanes(scores + block * kBlockRows);
      peak = score > peak ? score : peak;
    }
    store_lanes(peaks + group * kBlockRows, peak);
  }
}
void peaks_scalar(const float* scores, int64_t blocks, int64_t groups, float* peaks) {
  peaks_of(scores, blocks, groups, peaks);
}
QC_AVX2 void peaks_avx2(const float* scores, int64_t blocks, int64_t groups, float* peaks) {
  peaks_of(scores, blocks, groups, peaks);
}
QC_AVX512 void peaks_avx512(const float* scores, int64_t blocks, int64_t groups, float* peaks) {
  peaks_of(scores, blocks, groups, peaks);
}

}  // namespace

LanePeaks lane_peaks(Isa isa) {
  if (isa == Isa::kScalar) return peaks_scalar;
  return isa == Isa::kAvx2 ? peaks_avx2 : peaks_avx512;
}

CellKernel cell_kernel(Isa isa) {
  if (isa == Isa::kScalar) return cell_scores_scalar;
  return isa == Isa::kAvx2 ? cell_scores_avx2 : cell_scores_avx512;
}

NotBelow not_below(Isa isa) {
  if (isa == Isa::kScalar) return not_below_scalar;
  return isa == Isa::kAvx2 ? not_below_avx2 : not_below_avx512;
}

void cell_scores_scalar(const PackedBlocks& blocks, const BlockList& list, const CellQuery* queries,
                        int64_t count) {
  for (const CellQuery* query = queries; query != queries + count; ++query) {
    const uint8_t* x = query->values;
    for (int64_t i = 0; i < list.count; ++i) {
      const int8_t* rows = blocks.block(list[i]);
      const BlockTerms& terms = blocks.terms[list[i]];
      float* out = query->scores + i * kBlockRows;
      for (int lane = 0; lane < kBlockRows; ++lane) {
        int32_t sum = 0;
        for (int64_t step = 0; step < blocks.steps; ++step) {
          for (int j = 0; j < kBlockDepth; ++j) {
            sum += rows[step * kStepBytes + lane * kBlockDepth + j] *
                   (x[step * kBlockDepth + j] - 128);
          }
        }
        out[lane] = static_cast<float>(sum) * (terms.scale[lane] * query->scale) + terms.bias[lane];
      }
    }
  }
}

uint64_t not_below_scalar(const float* scores, float bar) {
  uint64_t bits = 0;
  for (int i = 0; i < 64; ++i) bits |= uint64_t{!(scores[i] < bar)} << i;
  return bits;
}

}  // namespace qcompile

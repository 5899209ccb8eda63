#include "index/code_kernels.h"

#include "index/codes.h"

namespace qcompile {

CodeKernel code_kernel(Isa isa) {
  if (isa == Isa::kScalar) return code_scores_scalar;
  return isa == Isa::kAvx2 ? code_scores_avx2 : code_scores_avx512;
}

void code_scores_scalar(const CodedBlocks& blocks, const BlockList& list, const CellQuery* queries,
                        int64_t count) {
  const int64_t each = codes_per_byte(blocks.bits);
  const int levels = 1 << blocks.bits;
  for (const CellQuery* query = queries; query != queries + count; ++query) {
    const auto* x = reinterpret_cast<const int8_t*>(query->values);
    for (int64_t i = 0; i < list.count; ++i) {
      const uint8_t* rows = blocks.block(list[i]);
      const float* scale = blocks.scale + int64_t{list[i]} * kBlockRows;
      const float* bias = blocks.bias[list[i]].of;
      float* out = query->scores + i * kBlockRows;
      for (int lane = 0; lane < kBlockRows; ++lane) {
        int32_t sum = 0;
        for (int64_t at = 0; at < blocks.steps * each * kBlockDepth; ++at) {
          const int64_t step = at / kBlockDepth;
          const int byte = rows[step / each * kStepBytes + lane * kBlockDepth + at % kBlockDepth];
          sum += (byte >> (step % each * blocks.bits) & (levels - 1)) * x[at];
        }
        const int32_t dot = 2 * sum - (levels - 1) * query->sum;
        const float product = static_cast<float>(dot) * (scale[lane] * query->scale);
        out[lane] = product + bias[lane] + query->bases[i * query->base_step];
      }
    }
  }
}

}  // namespace qcompile

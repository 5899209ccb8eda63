// Approximate scores of coded rows (index/codes.h) for encoded queries, one set of kernels for each
// instruction set. They round alike, operation by operation, so the sets return the same.
#pragma once

#include <cstdint>

#include "core/isa.h"
#include "index/cell_kernels.h"

namespace qcompile {

// Of 16 rows, without that of their cell.
struct alignas(64) BlockBiases {
  float of[kBlockRows];
};

struct CodedBlocks {
  const uint8_t* codes = nullptr;  // [blocks, steps, 16, 4]
  const float* scale = nullptr;    // [blocks * 16]
  const BlockBiases* bias = nullptr;
  int64_t steps = 0;
  int64_t bits = 2;

  const uint8_t* block(int64_t index) const { return codes + index * steps * kStepBytes; }
};

// Writes float(levels.x) * (row.scale * query.scale) + row.bias + base of every row of the listed
// blocks for `count` queries, whose bases are the scores of the blocks' cells. Their values are
// zero up to the coordinates that the steps of a block have.
using CodeKernel = void (*)(const CodedBlocks& blocks, const BlockList& list,
                            const CellQuery* queries, int64_t count);

CodeKernel code_kernel(Isa isa);

void code_scores_scalar(const CodedBlocks& blocks, const BlockList& list, const CellQuery* queries,
                        int64_t count);
QC_AVX2 void code_scores_avx2(const CodedBlocks& blocks, const BlockList& list,
                              const CellQuery* queries, int64_t count);
QC_AVX512 void code_scores_avx512(const CodedBlocks& blocks, const BlockList& list,
                                  const CellQuery* queries, int64_t count);

}  // namespace qcompile

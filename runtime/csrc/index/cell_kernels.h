// Approximate scores of packed rows for encoded queries, one set of kernels for each instruction
// set. They round alike, operation by operation, so the sets return the same.
#pragma once

#include <cstdint>

#include "core/isa.h"
#include "index/layout.h"

namespace qcompile {

// What a score needs of 16 rows, besides their packed values.
struct alignas(64) BlockTerms {
  float scale[kBlockRows];
  float bias[kBlockRows];
  int32_t correction[kBlockRows];  // -128 * sum of q: undoes the offset of unsigned queries
};

// Packed blocks, of which a kernel scores those that a list names.
struct PackedBlocks {
  const int8_t* values = nullptr;  // [blocks, steps, 16, 4]
  const BlockTerms* terms = nullptr;
  int64_t steps = 0;

  const int8_t* block(int64_t index) const { return values + index * steps * kStepBytes; }
};

// Blocks to be scored, and how many the array names after them: those come next, so kernels ask for
// their memory.
struct BlockList {
  const int32_t* blocks;
  int64_t count;
  int64_t following = 0;

  int32_t operator[](int64_t index) const { return blocks[index]; }
  int64_t known() const { return count + following; }
};

// An encoded query (see index/query.h), and where its scores go.
struct CellQuery {
  const uint8_t* values = nullptr;  // 4 * steps bytes; those for codes are without the offset
  float scale = 0;
  int32_t sum = 0;               // of the values, without the offset; codes alone need it
  const float* bases = nullptr;  // what is added to the scores of each listed block of codes
  int64_t base_step = 0;         // from the base of one listed block to that of the next, 0 or 1
  float* scores = nullptr;       // [list.count * 16]
};

// Writes float(q.x) * (row.scale * query.scale) + row.bias of every row of the listed blocks for
// `count` queries.
using CellKernel = void (*)(const PackedBlocks& blocks, const BlockList& list,
                            const CellQuery* queries, int64_t count);

CellKernel cell_kernel(Isa isa);

void cell_scores_scalar(const PackedBlocks& blocks, const BlockList& list, const CellQuery* queries,
                        int64_t count);
QC_AVX2 void cell_scores_avx2(const PackedBlocks& blocks, const BlockList& list,
                              const CellQuery* queries, int64_t count);
QC_AVX512 void cell_scores_avx512(const PackedBlocks& blocks, const BlockList& list,
                                  const CellQuery* queries, int64_t count);

// Bits of the scores [64] that are not below `bar`.
uint64_t not_below_scalar(const float* scores, float bar);
QC_AVX2 uint64_t not_below_avx2(const float* scores, float bar);
QC_AVX512 uint64_t not_below_avx512(const float* scores, float bar);

using NotBelow = uint64_t (*)(const float* scores, float bar);
NotBelow not_below(Isa isa);

// The greatest scores [blocks, 16] of each lane of every `groups`-th block, or minus infinity, into
// peaks [groups, 16]; NaN is passed over.
using LanePeaks = void (*)(const float* scores, int64_t blocks, int64_t groups, float* peaks);
LanePeaks lane_peaks(Isa isa);

}  // namespace qcompile

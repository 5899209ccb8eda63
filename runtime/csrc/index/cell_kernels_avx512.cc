// AVX-512 VNNI: unsigned query (128 added) times signed row; the sums start at the correction
// that takes 128 * sum(q) away again. Sums wrap, so their order does not matter.
#include <cstring>

#include "core/intrinsics.h"
#include "index/cell_kernels.h"

namespace qcompile {
namespace {

QC_AVX512 inline __m512i broadcast(const uint8_t* x) {
  int32_t four;
  std::memcpy(&four, x, sizeof four);
  return _mm512_set1_epi32(four);
}

QC_AVX512 inline void store_scores(__m512i sums, const BlockTerms& terms, float query_scale,
                                   float* out) {
  const __m512 scale = _mm512_mul_ps(_mm512_load_ps(terms.scale), _mm512_set1_ps(query_scale));
  const __m512 product = _mm512_mul_ps(_mm512_cvtepi32_ps(sums), scale);
  _mm512_storeu_ps(out, _mm512_add_ps(product, _mm512_load_ps(terms.bias)));
}

// Asks for the terms of a block that comes next, which no hardware guesses.
QC_AVX512 inline void ask_for_terms(const BlockTerms& terms) {
  for (size_t at = 0; at < sizeof terms; at += 64) {
    __builtin_prefetch(reinterpret_cast<const char*>(&terms) + at);
  }
}

// kBlocks blocks from all over the memory; asks for those that come next.
template <int kQueries, int kBlocks>
QC_AVX512 void tile_of(const PackedBlocks& blocks, const BlockList& list, int64_t at,
                       const CellQuery* queries) {
  const int8_t *rows[kBlocks], *next[kBlocks];
  __m512i sums[kQueries][kBlocks];
#pragma GCC unroll 8
  for (int b = 0; b < kBlocks; ++b) {
    const int32_t ahead = list[at + kBlocks + b < list.known() ? at + kBlocks + b : at + b];
    rows[b] = blocks.block(list[at + b]);
    next[b] = blocks.block(ahead);
    ask_for_terms(blocks.terms[ahead]);
    const __m512i start = _mm512_load_si512(blocks.terms[list[at + b]].correction);
#pragma GCC unroll 8
    for (int q = 0; q < kQueries; ++q) sums[q][b] = start;
  }
  for (int64_t step = 0; step < blocks.steps; ++step) {
    __m512i values[kBlocks];
#pragma GCC unroll 8
    for (int b = 0; b < kBlocks; ++b) {
      values[b] = _mm512_loadu_si512(rows[b] + step * kStepBytes);
      __builtin_prefetch(next[b] + step * kStepBytes);
    }
#pragma GCC unroll 8
    for (int q = 0; q < kQueries; ++q) {
      const __m512i four = broadcast(queries[q].values + step * kBlockDepth);
#pragma GCC unroll 8
      for (int b = 0; b < kBlocks; ++b) {
        add_dots(sums[q][b], four, values[b]);
      }
    }
  }
#pragma GCC unroll 8
  for (int q = 0; q < kQueries; ++q) {
    float* out = queries[q].scores + at * kBlockRows;
#pragma GCC unroll 8
    for (int b = 0; b < kBlocks; ++b) {
      store_scores(sums[q][b], blocks.terms[list[at + b]], queries[q].scale, out + b * kBlockRows);
    }
  }
}

template <int kQueries>
QC_AVX512 void blocks_of(const PackedBlocks& blocks, const BlockList& list,
                         const CellQuery* queries) {
  int64_t at = 0;
  for (; at + 4 <= list.count; at += 4) tile_of<kQueries, 4>(blocks, list, at, queries);
  for (; at + 2 <= list.count; at += 2) tile_of<kQueries, 2>(blocks, list, at, queries);
  for (; at < list.count; ++at) tile_of<kQueries, 1>(blocks, list, at, queries);
}

}  // namespace

QC_AVX512 void cell_scores_avx512(const PackedBlocks& blocks, const BlockList& list,
                                  const CellQuery* queries, int64_t count) {
  int64_t query = 0;
  for (; query + 4 <= count; query += 4) blocks_of<4>(blocks, list, queries + query);
  for (; query + 2 <= count; query += 2) blocks_of<2>(blocks, list, queries + query);
  for (; query < count; ++query) blocks_of<1>(blocks, list, queries + query);
}

QC_AVX512 uint64_t not_below_avx512(const float* scores, float bar) {
  uint64_t bits = 0;
  const __m512 bars = _mm512_set1_ps(bar);
  for (int i = 0; i < 64; i += 16) {
    bits |= uint64_t{_mm512_cmp_ps_mask(_mm512_loadu_ps(scores + i), bars, _CMP_NLT_UQ)} << i;
  }
  return bits;
}

}  // namespace qcompile

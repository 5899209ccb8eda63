// AVX-512 VNNI: unsigned codes times the signed query. Sums are exact, so their order does not
// matter.
#include <cstring>

#include "core/intrinsics.h"
#include "index/code_kernels.h"

namespace qcompile {
namespace {

QC_AVX512 inline __m512i broadcast(const uint8_t* x) {
  int32_t four;
  std::memcpy(&four, x, sizeof four);
  return _mm512_set1_epi32(four);
}

QC_AVX512 inline void store_scores(__m512i sums, const CodedBlocks& blocks, int64_t block,
                                   int32_t offset, float query_scale, float base, float* out) {
  const __m512i dots = _mm512_sub_epi32(_mm512_add_epi32(sums, sums), _mm512_set1_epi32(offset));
  const __m512 scale = _mm512_mul_ps(_mm512_loadu_ps(blocks.scale + block * kBlockRows),
                                     _mm512_set1_ps(query_scale));
  const __m512 product = _mm512_mul_ps(_mm512_cvtepi32_ps(dots), scale);
  const __m512 score = _mm512_add_ps(product, _mm512_load_ps(blocks.bias[block].of));
  _mm512_storeu_ps(out, _mm512_add_ps(score, _mm512_set1_ps(base)));
}

// kBlocks blocks from all over the memory; asks for those that come next. A single query leaves
// registers for a sum of each code of a byte: that code in its place is a power of two too large,
// which is cheaper to undo at the end than to shift every byte. Several queries share the shifts.
template <int kBits, int kQueries, int kBlocks>
QC_AVX512 void tile_of(const CodedBlocks& blocks, const BlockList& list, int64_t at,
                       const CellQuery* queries) {
  constexpr int kCodes = 8 / kBits;
  constexpr bool kShift = kQueries > 1;
  constexpr int kSums = kShift ? 1 : kCodes;
  const uint8_t *rows[kBlocks], *next[kBlocks];
  __m512i sums[kQueries][kBlocks][kSums];
#pragma GCC unroll 8
  for (int b = 0; b < kBlocks; ++b) {
    const int32_t ahead = list[at + kBlocks + b < list.known() ? at + kBlocks + b : at + b];
    rows[b] = blocks.block(list[at + b]);
    next[b] = blocks.block(ahead);
    __builtin_prefetch(blocks.scale + int64_t{ahead} * kBlockRows);
    __builtin_prefetch(blocks.bias[ahead].of);
#pragma GCC unroll 8
    for (int q = 0; q < kQueries; ++q) {
#pragma GCC unroll 4
      for (int s = 0; s < kSums; ++s) sums[q][b][s] = _mm512_setzero_si512();
    }
  }
  for (int64_t step = 0; step < blocks.steps; ++step) {
    __m512i bytes[kBlocks];
#pragma GCC unroll 8
    for (int b = 0; b < kBlocks; ++b) {
      bytes[b] = _mm512_loadu_si512(rows[b] + step * kStepBytes);
      __builtin_prefetch(next[b] + step * kStepBytes);
    }
#pragma GCC unroll 4
    for (int code = 0; code < kCodes; ++code) {
      constexpr int kMask = (1 << kBits) - 1;
      const __m512i mask =
          _mm512_set1_epi8(static_cast<char>(kShift ? kMask : kMask << (code * kBits)));
      __m512i values[kBlocks];
#pragma GCC unroll 8
      for (int b = 0; b < kBlocks; ++b) {
        const __m512i moved =
            kShift ? _mm512_srli_epi16(bytes[b], static_cast<unsigned>(code * kBits)) : bytes[b];
        values[b] = _mm512_and_si512(moved, mask);
      }
#pragma GCC unroll 8
      for (int q = 0; q < kQueries; ++q) {
        const __m512i four = broadcast(queries[q].values + (step * kCodes + code) * kBlockDepth);
#pragma GCC unroll 8
        for (int b = 0; b < kBlocks; ++b) {
          add_dots(sums[q][b][kShift ? 0 : code], values[b], four);
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int q = 0; q < kQueries; ++q) {
    const CellQuery& query = queries[q];
#pragma GCC unroll 8
    for (int b = 0; b < kBlocks; ++b) {
      __m512i sum = sums[q][b][0];
#pragma GCC unroll 4
      for (int s = 1; s < kSums; ++s) {
        sum = _mm512_add_epi32(sum,
                               _mm512_srai_epi32(sums[q][b][s], static_cast<unsigned>(s * kBits)));
      }
      store_scores(sum, blocks, list[at + b], ((1 << kBits) - 1) * query.sum, query.scale,
                   query.bases[(at + b) * query.base_step], query.scores + (at + b) * kBlockRows);
    }
  }
}

template <int kBits, int kQueries>
QC_AVX512 void blocks_of(const CodedBlocks& blocks, const BlockList& list,
                         const CellQuery* queries) {
  int64_t at = 0;
  for (; at + 4 <= list.count; at += 4) tile_of<kBits, kQueries, 4>(blocks, list, at, queries);
  for (; at + 2 <= list.count; at += 2) tile_of<kBits, kQueries, 2>(blocks, list, at, queries);
  for (; at < list.count; ++at) tile_of<kBits, kQueries, 1>(blocks, list, at, queries);
}

template <int kBits>
QC_AVX512 void scores_of(const CodedBlocks& blocks, const BlockList& list, const CellQuery* queries,
                         int64_t count) {
  int64_t query = 0;
  for (; query + 4 <= count; query += 4) blocks_of<kBits, 4>(blocks, list, queries + query);
  for (; query + 2 <= count; query += 2) blocks_of<kBits, 2>(blocks, list, queries + query);
  for (; query < count; ++query) blocks_of<kBits, 1>(blocks, list, queries + query);
}

}  // namespace

QC_AVX512 void code_scores_avx512(const CodedBlocks& blocks, const BlockList& list,
                                  const CellQuery* queries, int64_t count) {
  (blocks.bits == 2 ? scores_of<2> : scores_of<4>)(blocks, list, queries, count);
}

}  // namespace qcompile

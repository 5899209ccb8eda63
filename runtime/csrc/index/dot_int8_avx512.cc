// AVX-512 VNNI: unsigned query (128 added) times signed row; the sums start at the correction
// that takes 128 * sum(q) away again. Sums wrap, so their order does not matter.
#include <cstring>

#include "core/intrinsics.h"
#include "index/dot_int8.h"

namespace qcompile {
namespace {

QC_AVX512 inline __m512i broadcast(const uint8_t* x) {
  int32_t four;
  std::memcpy(&four, x, sizeof four);
  return _mm512_set1_epi32(four);
}

template <int kQueries, int kBlocks>
QC_AVX512 void tile_of(const DotTile& tile, int64_t query, int64_t block, int32_t* dots) {
  const int64_t bytes = tile.steps * kStepBytes;
  const int8_t* rows = tile.rows + block * bytes;
  const uint8_t* x = tile.queries + query * tile.stride;
  __m512i sums[kQueries][kBlocks];
  for (int b = 0; b < kBlocks; ++b) {
    const __m512i start = _mm512_load_si512(tile.figures[block + b].correction);
    for (int q = 0; q < kQueries; ++q) sums[q][b] = start;
  }
  for (int64_t step = 0; step < tile.steps; ++step) {
    __m512i values[kBlocks];
    for (int b = 0; b < kBlocks; ++b) {
      const int8_t* at = rows + b * bytes + step * kStepBytes;
      values[b] = _mm512_loadu_si512(at);
      // One query waits for memory: ask for the line that the next tile needs in this place.
      if constexpr (kQueries == 1) __builtin_prefetch(at + kBlocks * bytes);
    }
    for (int q = 0; q < kQueries; ++q) {
      const __m512i four = broadcast(x + q * tile.stride + step * kBlockDepth);
      for (int b = 0; b < kBlocks; ++b) {
        sums[q][b] = _mm512_dpbusd_epi32(sums[q][b], four, values[b]);
      }
    }
  }
  for (int q = 0; q < kQueries; ++q) {
    int32_t* out = dots + ((query + q) * tile.blocks + block) * kBlockRows;
    for (int b = 0; b < kBlocks; ++b) _mm512_storeu_si512(out + b * kBlockRows, sums[q][b]);
  }
}

template <int kQueries, int kBlocks>
QC_AVX512 void rows_of(const DotTile& tile, int64_t query, int32_t* dots) {
  int64_t block = 0;
  for (; block + kBlocks <= tile.blocks; block += kBlocks) {
    tile_of<kQueries, kBlocks>(tile, query, block, dots);
  }
  for (; block < tile.blocks; ++block) tile_of<kQueries, 1>(tile, query, block, dots);
}

}  // namespace

QC_AVX512 void dot_int8_avx512(const DotTile& tile, int32_t* dots) {
  int64_t query = 0;
  for (; query + 4 <= tile.count; query += 4) rows_of<4, 4>(tile, query, dots);
  for (; query < tile.count; ++query) rows_of<1, 8>(tile, query, dots);
}

}  // namespace qcompile

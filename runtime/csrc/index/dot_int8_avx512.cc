// AVX-512 VNNI: unsigned row (128 added) times signed query; the sums start at -128 times the sum
// of the query. Sums wrap, so their order does not matter.
#include <cstring>

#include "core/intrinsics.h"
#include "index/dot_int8.h"

namespace qcompile {
namespace {

// What is asked of memory ahead of the values that are multiplied, line after line: some machines
// read four blocks side by side at half the speed.
constexpr int64_t kAhead = 8192;

QC_AVX512 inline __m512i broadcast(const int8_t* x) {
  int32_t four;
  std::memcpy(&four, x, sizeof four);
  return _mm512_set1_epi32(four);
}

struct Sums {
  __m512i of[kTileBlocks];
};

template <int kQueries>
QC_AVX512 inline void start(const DotQueries& queries, int64_t first, int offset, Sums* sums) {
#pragma GCC unroll 8
  for (int q = 0; q < kQueries; ++q) {
    const __m512i start = _mm512_set1_epi32(-offset * queries.sums[first + q]);
#pragma GCC unroll 8
    for (int b = 0; b < kTileBlocks; ++b) sums[q].of[b] = start;
  }
}

template <int kQueries>
QC_AVX512 inline void finish(const Sums* sums, int32_t* dots) {
#pragma GCC unroll 8
  for (int q = 0; q < kQueries; ++q) {
#pragma GCC unroll 8
    for (int b = 0; b < kTileBlocks; ++b) {
      _mm512_storeu_si512(dots + q * kTileRows + b * kBlockRows, sums[q].of[b]);
    }
  }
}

template <int kQueries>
QC_AVX512 void some_dots(const int8_t* packed, const DotQueries& queries, int64_t first,
                         int32_t* dots) {
  const int64_t bytes = queries.steps * kStepBytes;
  const int8_t* x = queries.values + first * queries.stride;
  const __m512i flip = _mm512_set1_epi8(static_cast<char>(0x80));
  Sums sums[kQueries];
  start<kQueries>(queries, first, 128, sums);
  for (int64_t step = 0; step < queries.steps; ++step) {
    __m512i values[kTileBlocks];
#pragma GCC unroll 8
    for (int b = 0; b < kTileBlocks; ++b) {
      const int8_t* at = packed + b * bytes + step * kStepBytes;
      values[b] = _mm512_xor_si512(_mm512_loadu_si512(at), flip);
    }
#pragma GCC unroll 8
    for (int q = 0; q < kQueries; ++q) {
      const __m512i four = broadcast(x + q * queries.stride + step * kBlockDepth);
#pragma GCC unroll 8
      for (int b = 0; b < kTileBlocks; ++b) {
        add_dots(sums[q].of[b], values[b], four);
      }
    }
  }
  finish<kQueries>(sums, dots + first * kTileRows);
}

template <int kQueries>
QC_AVX512 void some_rough_dots(const uint8_t* rough, const DotQueries& queries, int64_t first,
                               int32_t* dots) {
  const int64_t pairs = ceil_div(queries.steps, 2), bytes = pairs * kStepBytes;
  const int8_t* x = queries.values + first * queries.stride;
  const __m512i high = _mm512_set1_epi8(static_cast<char>(0xF0));
  // Of few queries the sums would wait for each other: each has two.
  constexpr int kApart = kQueries <= 2 ? kQueries : 0;
  Sums sums[kQueries + kApart];
  start<kQueries>(queries, first, kRoughOffset, sums);
#pragma GCC unroll 8
  for (int q = 0; q < kApart; ++q) {
#pragma GCC unroll 8
    for (int b = 0; b < kTileBlocks; ++b) sums[kQueries + q].of[b] = _mm512_setzero_si512();
  }
  for (int64_t pair = 0; pair < pairs; ++pair) {
    __m512i former[kTileBlocks], latter[kTileBlocks];
#pragma GCC unroll 8
    for (int b = 0; b < kTileBlocks; ++b) {
      const uint8_t* at = rough + b * bytes + pair * kStepBytes;
      __builtin_prefetch(rough + kAhead + (pair * kTileBlocks + b) * kStepBytes);
      const __m512i both = _mm512_loadu_si512(at);
      former[b] = _mm512_and_si512(_mm512_slli_epi16(both, 4), high);
      latter[b] = _mm512_and_si512(both, high);
    }
#pragma GCC unroll 8
    for (int q = 0; q < kQueries; ++q) {
      const int8_t* at = x + q * queries.stride + 2 * pair * kBlockDepth;
      const __m512i four = broadcast(at), next = broadcast(at + kBlockDepth);
#pragma GCC unroll 8
      for (int b = 0; b < kTileBlocks; ++b) {
        add_dots(sums[q].of[b], former[b], four);
        add_dots(sums[kApart > 0 ? kQueries + q : q].of[b], latter[b], next);
      }
    }
  }
#pragma GCC unroll 8
  for (int q = 0; q < kApart; ++q) {
#pragma GCC unroll 8
    for (int b = 0; b < kTileBlocks; ++b) {
      sums[q].of[b] = _mm512_add_epi32(sums[q].of[b], sums[kQueries + q].of[b]);
    }
  }
  finish<kQueries>(sums, dots + first * kTileRows);
}

QC_AVX512 void dots(const int8_t* packed, const DotQueries& queries, int32_t* dots) {
  int64_t first = 0;
  for (; first + 4 <= queries.count; first += 4) some_dots<4>(packed, queries, first, dots);
  if (queries.count - first == 3) return some_dots<3>(packed, queries, first, dots);
  if (queries.count - first == 2) return some_dots<2>(packed, queries, first, dots);
  if (queries.count - first == 1) some_dots<1>(packed, queries, first, dots);
}

QC_AVX512 void rough_dots(const uint8_t* rough, const DotQueries& queries, int32_t* dots) {
  int64_t first = 0;
  for (; first + 3 <= queries.count; first += 3) some_rough_dots<3>(rough, queries, first, dots);
  if (queries.count - first == 2) return some_rough_dots<2>(rough, queries, first, dots);
  if (queries.count - first == 1) some_rough_dots<1>(rough, queries, first, dots);
}

}  // namespace

const DotKernel kDotAvx512{[](const DotQueries&) {}, dots, rough_dots, [] {}};

}  // namespace qcompile

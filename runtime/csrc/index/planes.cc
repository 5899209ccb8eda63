#include "index/planes.h"

#include <algorithm>
#include <cmath>

#include "core/intrinsics.h"

namespace qcompile {
namespace {

// Steps whose sums of squares, below 2^14 each, fit int32.
constexpr int64_t kChunk = 1 << 14;

QC_INLINE void sum_body(const int8_t* block, int64_t steps, RowSums (&sums)[kBlockRows]) {
  for (RowSums& sum : sums) sum = {};
  for (int64_t first = 0; first < steps; first += kChunk) {
    const int64_t end = first + kChunk < steps ? first + kChunk : steps;
    int32_t squares[kStepBytes] = {}, rough_squares[kStepBytes] = {}, differences[kStepBytes] = {};
    for (int64_t step = first; step < end; ++step) {
      const int8_t* values = block + step * kStepBytes;
      for (int i = 0; i < kStepBytes; ++i) {
        const auto value = static_cast<int16_t>(values[i]);
        const auto rough = static_cast<int16_t>((((value + 128) >> 4) << 4) - kRoughOffset);
        const auto difference = static_cast<int16_t>(value - rough);
        squares[i] += value * value;
        rough_squares[i] += rough * rough;
        differences[i] += difference * difference;
      }
    }
    for (int i = 0; i < kStepBytes; ++i) {
      sums[i / kBlockDepth].squares += squares[i];
      sums[i / kBlockDepth].rough_squares += rough_squares[i];
      sums[i / kBlockDepth].difference += differences[i];
    }
  }
}

QC_INLINE void merge_body(const uint8_t* high, const uint8_t* low, int64_t bytes, int8_t* rows) {
  for (int64_t at = 0; at < bytes; at += kStepBytes) {
    int8_t *former = rows + 2 * at, *latter = former + kStepBytes;
    for (int i = 0; i < kStepBytes; ++i) {
      const unsigned h = high[at + i], l = low == nullptr ? 0x88 : low[at + i];
      former[i] = static_cast<int8_t>(((h << 4) | (l & 0x0F)) ^ 0x80);
      latter[i] = static_cast<int8_t>(((h & 0xF0) | (l >> 4)) ^ 0x80);
    }
  }
}

void sum_scalar(const int8_t* b, int64_t n, RowSums (&s)[kBlockRows]) { sum_body(b, n, s); }
QC_AVX2 void sum_avx2(const int8_t* b, int64_t n, RowSums (&s)[kBlockRows]) { sum_body(b, n, s); }
QC_AVX512 void sum_avx512(const int8_t* b, int64_t n, RowSums (&s)[kBlockRows]) {
  sum_body(b, n, s);
}

void merge_scalar(const uint8_t* high, const uint8_t* low, int64_t bytes, int8_t* rows) {
  merge_body(high, low, bytes, rows);
}
QC_AVX2 void merge_avx2(const uint8_t* high, const uint8_t* low, int64_t bytes, int8_t* rows) {
  merge_body(high, low, bytes, rows);
}
QC_AVX512 void merge_avx512(const uint8_t* high, const uint8_t* low, int64_t bytes, int8_t* rows) {
  const __m512i mask = _mm512_set1_epi8(0x0F), flip = _mm512_set1_epi8(static_cast<char>(0x80));
  __m512i l = _mm512_set1_epi8(static_cast<char>(0x88));
  for (int64_t at = 0; at < bytes; at += kStepBytes) {
    const __m512i h = _mm512_loadu_si512(high + at);
    if (low != nullptr) l = _mm512_loadu_si512(low + at);
    // Bits of the mask from the second operand, the others from the first: 0xCA selects.
    const __m512i former = _mm512_ternarylogic_epi32(mask, l, _mm512_slli_epi16(h, 4), 0xCA);
    const __m512i latter = _mm512_ternarylogic_epi32(mask, _mm512_srli_epi16(l, 4), h, 0xCA);
    _mm512_storeu_si512(rows + 2 * at, _mm512_xor_si512(former, flip));
    _mm512_storeu_si512(rows + 2 * at + kStepBytes, _mm512_xor_si512(latter, flip));
  }
}

// What a row of one plane may be off: of packed values, those of a step are kStepBytes from the
// next one's.
float rough_error(const float* row, int64_t depth, float scale, const int8_t* values) {
  double total = 0;
  for (int64_t j = 0; j < depth; ++j) {
    const int value = values[j / kBlockDepth * kStepBytes + j % kBlockDepth];
    const int rough = ((value + 128) >> 4 << 4) - kRoughOffset;
    // Exact: a float less the product of a float and seven bits.
    const double residual = static_cast<double>(row[j]) - static_cast<double>(scale) * rough;
    total += residual * residual;
  }
  return round_up(std::sqrt(total) * (1 + static_cast<double>(depth + 4) * 0x1p-52));
}

}  // namespace

void sum_block(const int8_t* block, int64_t steps, RowSums (&sums)[kBlockRows], Isa isa) {
  if (isa == Isa::kScalar) return sum_scalar(block, steps, sums);
  if (isa == Isa::kAvx2) return sum_avx2(block, steps, sums);
  sum_avx512(block, steps, sums);
}

void split_block(const int8_t* block, int64_t steps, uint8_t* high, uint8_t* low) {
  constexpr uint8_t kZero = 0x80;  // what a coordinate that does not exist is worth
  for (int64_t step = 0; step < steps; step += 2) {
    for (int i = 0; i < kStepBytes; ++i) {
      const int8_t* values = block + step * kStepBytes + i;
      const auto former = static_cast<uint8_t>(static_cast<uint8_t>(values[0]) ^ 0x80);
      const auto latter =
          step + 1 == steps ? kZero
                            : static_cast<uint8_t>(static_cast<uint8_t>(values[kStepBytes]) ^ 0x80);
      const int64_t at = step / 2 * kStepBytes + i;
      high[at] = static_cast<uint8_t>((former >> 4) | (latter & 0xF0));
      if (low != nullptr) low[at] = static_cast<uint8_t>((former & 0x0F) | (latter << 4));
    }
  }
}

void merge_planes(const uint8_t* high, const uint8_t* low, int64_t bytes, int8_t* rows, Isa isa) {
  if (isa == Isa::kScalar) return merge_scalar(high, low, bytes, rows);
  if (isa == Isa::kAvx2) return merge_avx2(high, low, bytes, rows);
  merge_avx512(high, low, bytes, rows);
}

void pack_planes(const float* weight, int64_t rows, int64_t depth, uint8_t* high, uint8_t* low,
                 float* scale, float* error, const Executor& executor) {
  const int64_t bytes = plane_bytes(depth), steps = step_count(depth);
  pack_blocks(
      weight, rows, depth, scale, error, executor, [&](int64_t block, const int8_t* values) {
        split_block(values, steps, high + block * bytes,
                    low == nullptr ? nullptr : low + block * bytes);
        if (low != nullptr) return;
        const int64_t first = block * kBlockRows;
        for (int64_t r = first; r < std::min(first + kBlockRows, rows); ++r) {
          error[r] =
              rough_error(weight + r * depth, depth, scale[r], values + (r - first) * kBlockDepth);
        }
      });
}

}  // namespace qcompile

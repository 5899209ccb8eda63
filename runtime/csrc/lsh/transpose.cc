#include "lsh/transpose.h"

#include "core/intrinsics.h"
#include "core/lanes.h"

namespace qcompile {
namespace {

void transpose_from(int64_t first, const float* const* rows, int64_t depth, float* columns) {
  for (int64_t j = first; j < depth; ++j) {
    for (int lane = 0; lane < kLanes; ++lane) columns[j * kLanes + lane] = rows[lane][j];
  }
}

void transpose_scalar(const float* const* rows, int64_t depth, float* columns) {
  transpose_from(0, rows, depth, columns);
}

// Eight rows by eight columns: pairs, then fours, then the halves of a register change places.
QC_AVX2 void transpose_avx2(const float* const* rows, int64_t depth, float* columns) {
  const int64_t whole = depth / 8 * 8;
  for (int64_t j = 0; j < whole; j += 8) {
    for (int half = 0; half < kLanes; half += 8) {
      __m256 row[8], pairs[8], fours[8];
      for (int i = 0; i < 8; ++i) row[i] = _mm256_loadu_ps(rows[half + i] + j);
      for (int i = 0; i < 8; i += 2) {
        pairs[i] = _mm256_unpacklo_ps(row[i], row[i + 1]);
        pairs[i + 1] = _mm256_unpackhi_ps(row[i], row[i + 1]);
      }
      for (int i = 0; i < 8; i += 4) {
        fours[i] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
        fours[i + 1] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0xee);
        fours[i + 2] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
        fours[i + 3] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xee);
      }
      for (int i = 0; i < 4; ++i) {
        float* low = columns + (j + i) * kLanes + half;
        _mm256_storeu_ps(low, _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x20));
        _mm256_storeu_ps(low + 4 * kLanes, _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x31));
      }
    }
  }
  transpose_from(whole, rows, depth, columns);
}

// Sixteen rows by sixteen columns: the same, and then quarters twice.
QC_AVX512 void transpose_avx512(const float* const* rows, int64_t depth, float* columns) {
  const int64_t whole = depth / kLanes * kLanes;
  for (int64_t j = 0; j < whole; j += kLanes) {
    __m512 a[kLanes], b[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) a[i] = _mm512_loadu_ps(rows[i] + j);
#pragma GCC unroll 8
    for (int i = 0; i < kLanes; i += 2) {
      b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
      b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
    }
    // Now a[4g + c] has column c of each quarter, rows 4g to 4g + 3.
#pragma GCC unroll 4
    for (int i = 0; i < kLanes; i += 4) {
      a[i] = _mm512_shuffle_ps(b[i], b[i + 2], 0x44);
      a[i + 1] = _mm512_shuffle_ps(b[i], b[i + 2], 0xee);
      a[i + 2] = _mm512_shuffle_ps(b[i + 1], b[i + 3], 0x44);
      a[i + 3] = _mm512_shuffle_ps(b[i + 1], b[i + 3], 0xee);
    }
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      const __m512 low01 = _mm512_shuffle_f32x4(a[c], a[c + 4], 0x44);
      const __m512 high01 = _mm512_shuffle_f32x4(a[c], a[c + 4], 0xee);
      const __m512 low23 = _mm512_shuffle_f32x4(a[c + 8], a[c + 12], 0x44);
      const __m512 high23 = _mm512_shuffle_f32x4(a[c + 8], a[c + 12], 0xee);
      float* to = columns + (j + c) * kLanes;
      _mm512_storeu_ps(to, _mm512_shuffle_f32x4(low01, low23, 0x88));
      _mm512_storeu_ps(to + 4 * kLanes, _mm512_shuffle_f32x4(low01, low23, 0xdd));
      _mm512_storeu_ps(to + 8 * kLanes, _mm512_shuffle_f32x4(high01, high23, 0x88));
      _mm512_storeu_ps(to + 12 * kLanes, _mm512_shuffle_f32x4(high01, high23, 0xdd));
    }
  }
  transpose_from(whole, rows, depth, columns);
}

}  // namespace

void transpose_rows(const float* const* rows, int64_t depth, float* columns, Isa isa) {
  if (isa >= Isa::kAvx512) return transpose_avx512(rows, depth, columns);
  if (isa == Isa::kAvx2) return transpose_avx2(rows, depth, columns);
  transpose_scalar(rows, depth, columns);
}

}  // namespace qcompile

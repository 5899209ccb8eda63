// Products of bfloat16 matrices with the processor's instructions for them: AVX512-BF16 and AMX.
#include "core/intrinsics.h"
#include "train/bfloat16_kernels.h"

namespace qcompile {
namespace {

#define QC_AVX512_BF16 \
  __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,prefer-vector-width=512")))
#define QC_AMX_BF16 __attribute__((target("amx-tile,amx-bf16,avx512f")))

constexpr int64_t kTile = 16;       // rows and columns of a tile of c
constexpr int64_t kTileDepth = 32;  // elements of k that one tile register holds

// Four rows by kColumns blocks of 16 columns, in registers over the whole depth.
template <int kColumns>
QC_AVX512_BF16 inline void four_rows(int64_t n, int64_t k, const uint16_t* a, int64_t a_stride,
                                     const uint16_t* b, float* c, int64_t c_stride, bool add) {
  __m512 sum[4][kColumns] = {};
  for (int64_t pair = 0; pair < k / 2; ++pair) {
    __m512bh right[kColumns];
#pragma GCC unroll 4
    for (int v = 0; v < kColumns; ++v) {
      right[v] = reinterpret_cast<__m512bh>(_mm512_loadu_si512(b + (pair * n + v * kTile) * 2));
    }
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
      int32_t both;
      __builtin_memcpy(&both, a + r * a_stride + 2 * pair, sizeof both);
      const auto left = reinterpret_cast<__m512bh>(_mm512_set1_epi32(both));
#pragma GCC unroll 4
      for (int v = 0; v < kColumns; ++v) {
        sum[r][v] = _mm512_dpbf16_ps(sum[r][v], left, right[v]);
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < 4; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kColumns; ++v) {
      float* out = c + r * c_stride + v * kTile;
      const __m512 before = add ? _mm512_loadu_ps(out) : _mm512_setzero_ps();
      _mm512_storeu_ps(out, _mm512_add_ps(before, sum[r][v]));
    }
  }
}

// Two rows of floats, rounded to nearest even as to_bfloat16 does, as one row of pairs.
QC_AVX512_BF16 inline __m512i rounded_pairs(const float* even, const float* odd) {
  const auto half = [](__m512i bits) QC_AVX512_BF16 {
    const __m512i last = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    return _mm512_add_epi32(bits, _mm512_add_epi32(last, _mm512_set1_epi32(0x7fff)));
  };
  const __m512i low = _mm512_srli_epi32(half(_mm512_loadu_si512(even)), 16);
  return _mm512_mask_blend_epi16(0xaaaaaaaau, low, half(_mm512_loadu_si512(odd)));
}

// Of 16 by 16 numbers: swaps ever larger blocks across the diagonal.
QC_AVX512_BF16 inline void transpose(__m512i (&rows)[kTile]) {
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
#pragma GCC unroll 4
  for (int step = 1; step < kTile; step *= 2) {
    const __m512i bit = _mm512_set1_epi32(step);
    const __mmask16 set = _mm512_test_epi32_mask(lane, bit);
    // Lanes 16 and beyond are those of the second row.
    const __m512i crossed = _mm512_xor_si512(lane, bit);
    const __m512i second = _mm512_set1_epi32(16);
    const __m512i low = _mm512_mask_add_epi32(lane, set, crossed, second);
    const __m512i high = _mm512_mask_add_epi32(crossed, set, lane, second);
#pragma GCC unroll 16
    for (int first = 0; first < kTile; ++first) {
      if (first & step) continue;
      const __m512i a = rows[first], b = rows[first + step];
      rows[first] = _mm512_permutex2var_epi32(a, low, b);
      rows[first + step] = _mm512_permutex2var_epi32(a, high, b);
    }
  }
}

// Shapes of the eight tile registers, in the processor's own layout: all full.
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
constexpr TileConfig kFullTiles;

// Registers 0 to 3: two by two tiles of c. 4 and 5: rows of a. 6 and 7: columns of b. A second row
// or column beyond the last is the first again; what it gives is the same and stored over it.
QC_AMX_BF16 void four_tiles(int64_t k, const uint16_t* a0, const uint16_t* a1, int64_t a_stride,
                            const uint16_t* b0, const uint16_t* b1, int64_t b_stride, float* c0,
                            float* c1, float* c2, float* c3, int64_t c_stride, bool add) {
  const int64_t a_bytes = a_stride * 2, b_bytes = b_stride * 2, c_bytes = c_stride * 4;
  if (add) {
    _tile_loadd(0, c0, c_bytes);
    _tile_loadd(1, c1, c_bytes);
    _tile_loadd(2, c2, c_bytes);
    _tile_loadd(3, c3, c_bytes);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t at = 0; at < k; at += kTileDepth) {
    _tile_loadd(4, a0 + at, a_bytes);
    _tile_loadd(6, b0 + at / 2 * b_stride, b_bytes);
    _tile_loadd(5, a1 + at, a_bytes);
    _tile_loadd(7, b1 + at / 2 * b_stride, b_bytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, c0, c_bytes);
  _tile_stored(1, c1, c_bytes);
  _tile_stored(2, c2, c_bytes);
  _tile_stored(3, c3, c_bytes);
}

}  // namespace

QC_AVX512_BF16 void multiply_avx512_bfloat16(int64_t m, int64_t n, int64_t k, const uint16_t* a,
                                             int64_t a_stride, const uint16_t* b, float* c,
                                             int64_t c_stride, bool add) {
  int64_t j = 0;
  for (; j + 4 * kTile <= n; j += 4 * kTile) {
    for (int64_t i = 0; i < m; i += 4) {
      four_rows<4>(n, k, a + i * a_stride, a_stride, b + 2 * j, c + i * c_stride + j, c_stride,
                   add);
    }
  }
  for (; j < n; j += kTile) {
    for (int64_t i = 0; i < m; i += 4) {
      four_rows<1>(n, k, a + i * a_stride, a_stride, b + 2 * j, c + i * c_stride + j, c_stride,
                   add);
    }
  }
}

QC_AVX512_BF16 void round_transposed_avx512(const float* from, int64_t from_stride, int64_t rows,
                                            int64_t columns, uint16_t* to, int64_t to_stride) {
  for (int64_t r = 0; r < rows; r += 2 * kTile) {
    for (int64_t c = 0; c < columns; c += kTile) {
      __m512i tile[kTile];
#pragma GCC unroll 16
      for (int pair = 0; pair < kTile; ++pair) {
        const float* even = from + (r + 2 * pair) * from_stride + c;
        tile[pair] = rounded_pairs(even, even + from_stride);
      }
      transpose(tile);
#pragma GCC unroll 16
      for (int i = 0; i < kTile; ++i) _mm512_storeu_si512(to + (c + i) * to_stride + r, tile[i]);
    }
  }
}

QC_AMX_BF16 void multiply_amx_bfloat16(int64_t m, int64_t n, int64_t k, const uint16_t* a,
                                       int64_t a_stride, const uint16_t* b, float* c,
                                       int64_t c_stride, bool add) {
  _tile_loadconfig(&kFullTiles);
  for (int64_t j = 0; j < n; j += 2 * kTile) {
    const int64_t next_j = j + kTile < n ? j + kTile : j;
    for (int64_t i = 0; i < m; i += 2 * kTile) {
      const int64_t next_i = i + kTile < m ? i + kTile : i;
      four_tiles(k, a + i * a_stride, a + next_i * a_stride, a_stride, b + 2 * j, b + 2 * next_j,
                 2 * n, c + i * c_stride + j, c + i * c_stride + next_j, c + next_i * c_stride + j,
                 c + next_i * c_stride + next_j, c_stride, add);
    }
  }
  _tile_release();
}

}  // namespace qcompile

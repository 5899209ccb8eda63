#include "train/bfloat16_kernels.h"

#include <cpuid.h>

#include "core/lanes.h"
#include "train/storage.h"

namespace qcompile {
namespace {

constexpr int64_t kTile = 16;

// Every product in float32; a band of 16 columns stays in registers over the whole depth.
QC_INLINE void multiply_body(int64_t m, int64_t n, int64_t k, const uint16_t* a, int64_t a_stride,
                             const uint16_t* b, float* c, int64_t c_stride, bool add) {
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; j += kTile) {
      float sum[kTile] = {};
      for (int64_t pair = 0; pair < k / 2; ++pair) {
        const float first = from_bfloat16(a[i * a_stride + 2 * pair]);
        const float second = from_bfloat16(a[i * a_stride + 2 * pair + 1]);
        const uint16_t* right = b + (pair * n + j) * 2;
        for (int lane = 0; lane < kTile; ++lane) {
          sum[lane] += first * from_bfloat16(right[2 * lane]);
          sum[lane] += second * from_bfloat16(right[2 * lane + 1]);
        }
      }
      float* out = c + i * c_stride + j;
      for (int lane = 0; lane < kTile; ++lane) out[lane] = (add ? out[lane] : 0.0f) + sum[lane];
    }
  }
}

QC_INLINE void round_body(const float* __restrict__ from, uint16_t* __restrict__ to,
                          int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = to_bfloat16(from[i]);
}

QC_INLINE void interleave_body(const uint16_t* __restrict__ even, const uint16_t* __restrict__ odd,
                               uint16_t* __restrict__ to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t pair = even[i] | static_cast<uint32_t>(odd[i]) << 16;
    std::memcpy(to + 2 * i, &pair, sizeof pair);
  }
}

// Of 16 x 16 numbers by swapping ever larger halves of pairs of rows.
QC_INLINE void transpose(uint32_t (&tile)[kTile][kTile]) {
  for (int step = 1; step < kTile; step *= 2) {
    for (int first = 0; first < kTile; ++first) {
      if (first & step) continue;
      uint32_t* low = tile[first];
      uint32_t* high = tile[first + step];
      uint32_t low_out[kTile], high_out[kTile];
      for (int lane = 0; lane < kTile; ++lane) {
        low_out[lane] = lane & step ? high[lane ^ step] : low[lane];
        high_out[lane] = lane & step ? high[lane] : low[lane ^ step];
      }
      std::memcpy(low, low_out, sizeof low_out);
      std::memcpy(high, high_out, sizeof high_out);
    }
  }
}

// Two rows become one of pairs, and these are transposed 16 by 16.
QC_INLINE void round_transposed_body(const float* from, int64_t from_stride, int64_t rows,
                                     int64_t columns, uint16_t* to, int64_t to_stride) {
  for (int64_t r = 0; r < rows; r += 2 * kTile) {
    for (int64_t c = 0; c < columns; c += kTile) {
      uint32_t tile[kTile][kTile];
      for (int pair = 0; pair < kTile; ++pair) {
        const float* even = from + (r + 2 * pair) * from_stride + c;
        const float* odd = even + from_stride;
        for (int lane = 0; lane < kTile; ++lane) {
          tile[pair][lane] = to_bfloat16(even[lane]) | static_cast<uint32_t>(to_bfloat16(odd[lane]))
                                                           << 16;
        }
      }
      transpose(tile);
      for (int lane = 0; lane < kTile; ++lane) {
        std::memcpy(to + (c + lane) * to_stride + r, tile[lane], sizeof tile[lane]);
      }
    }
  }
}

#define QC_BFLOAT16_KERNELS(name, attribute)                                                     \
  struct name {                                                                                  \
    attribute static void multiply(int64_t m, int64_t n, int64_t k, const uint16_t* a,           \
                                   int64_t a_stride, const uint16_t* b, float* c,                \
                                   int64_t c_stride, bool add) {                                 \
      multiply_body(m, n, k, a, a_stride, b, c, c_stride, add);                                  \
    }                                                                                            \
    attribute static void round(const float* from, uint16_t* to, int64_t count) {                \
      round_body(from, to, count);                                                               \
    }                                                                                            \
    attribute static void interleave(const uint16_t* even, const uint16_t* odd, uint16_t* to,    \
                                     int64_t count) {                                            \
      interleave_body(even, odd, to, count);                                                     \
    }                                                                                            \
    attribute static void round_transposed(const float* from, int64_t from_stride, int64_t rows, \
                                           int64_t columns, uint16_t* to, int64_t to_stride) {   \
      round_transposed_body(from, from_stride, rows, columns, to, to_stride);                    \
    }                                                                                            \
    static constexpr BFloat16Kernels kTable = {multiply, round, interleave, round_transposed};   \
  };

QC_BFLOAT16_KERNELS(Scalar, )
QC_BFLOAT16_KERNELS(Avx2, QC_AVX2)
QC_BFLOAT16_KERNELS(Avx512, QC_AVX512)
#undef QC_BFLOAT16_KERNELS

constexpr BFloat16Kernels kAvx512BFloat16 = {multiply_avx512_bfloat16, Avx512::round,
                                             Avx512::interleave, round_transposed_avx512};
constexpr BFloat16Kernels kAmxBFloat16 = {multiply_amx_bfloat16, Avx512::round, Avx512::interleave,
                                          round_transposed_avx512};

// A bit of what the processor says about itself, in leaf 7.
bool feature(unsigned subleaf, bool in_d, unsigned bit) {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, subleaf, &a, &b, &c, &d)) return false;
  return ((in_d ? d : a) >> bit & 1u) != 0;
}

}  // namespace

bool has_avx512_bfloat16() {
  static const bool has = supported(Isa::kAvx512) && feature(1, false, 5);
  return has;
}

bool has_amx_bfloat16() {
  static const bool has = supported(Isa::kAmx) && feature(0, true, 22);
  return has;
}

const BFloat16Kernels& bfloat16_kernels(Isa isa) {
  if (isa == Isa::kAmx && has_amx_bfloat16()) return kAmxBFloat16;
  if (isa >= Isa::kAvx512) return has_avx512_bfloat16() ? kAvx512BFloat16 : Avx512::kTable;
  return isa == Isa::kAvx2 ? Avx2::kTable : Scalar::kTable;
}

}  // namespace qcompile

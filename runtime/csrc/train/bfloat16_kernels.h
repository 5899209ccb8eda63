// Inner loops of training on bfloat16 with sums in float32. Results are the same for any number of
// threads; instruction sets differ in the order of a sum and in how they round within it.
#pragma once

#include <cstdint>

#include "core/isa.h"

namespace qcompile {

// "Pairs" of a matrix [rows, columns] are [rows / 2, columns, 2]: elements of two successive rows
// side by side.
struct BFloat16Kernels {
  // c [m, n] (+)= a [m, k] · b, given as pairs; m and n multiples of 16, k of 32. Rows of a and c
  // are their strides apart.
  void (*multiply)(int64_t m, int64_t n, int64_t k, const uint16_t* a, int64_t a_stride,
                   const uint16_t* b, float* c, int64_t c_stride, bool add);

  // to = from, rounded to nearest.
  void (*round)(const float* from, uint16_t* to, int64_t count);

  // to [2 count]: elements of two rows side by side.
  void (*interleave)(const uint16_t* even, const uint16_t* odd, uint16_t* to, int64_t count);

  // to [columns, to_stride], rounded, from [rows, from_stride]; rows a multiple of 32 and
  // columns of 16.
  void (*round_transposed)(const float* from, int64_t from_stride, int64_t rows, int64_t columns,
                           uint16_t* to, int64_t to_stride);
};

// kAmx with products on AMX, kAvx512 with AVX512-BF16 where there is such; see core/isa.h.
const BFloat16Kernels& bfloat16_kernels(Isa isa = best_matrix_isa());

bool has_avx512_bfloat16();
bool has_amx_bfloat16();

// With the instructions of the name; round_transposed_avx512 needs AVX512-BF16, too.
void multiply_avx512_bfloat16(int64_t m, int64_t n, int64_t k, const uint16_t* a, int64_t a_stride,
                              const uint16_t* b, float* c, int64_t c_stride, bool add);
void multiply_amx_bfloat16(int64_t m, int64_t n, int64_t k, const uint16_t* a, int64_t a_stride,
                           const uint16_t* b, float* c, int64_t c_stride, bool add);

void round_transposed_avx512(const float* from, int64_t from_stride, int64_t rows, int64_t columns,
                             uint16_t* to, int64_t to_stride);

}  // namespace qcompile

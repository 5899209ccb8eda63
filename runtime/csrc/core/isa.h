// Instruction sets, chosen at run time. Code for each is compiled function by function.
#pragma once

#include <string_view>

#define QC_AVX2 __attribute__((target("avx2,fma")))
#define QC_AVX512                                                      \
  __attribute__((                                                      \
      target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma," \
             "prefer-vector-width=512")))
#define QC_AMX __attribute__((target("amx-tile,amx-int8,avx512f")))
// For bodies that are compiled once per instruction set by inlining them into such functions.
#define QC_INLINE inline __attribute__((always_inline))
#define QC_INLINE_LAMBDA __attribute__((always_inline))

namespace qcompile {

enum class Isa { kScalar, kAvx2, kAvx512, kAmx };

// Whether this processor and operating system run it. kAvx512 includes VNNI; kAmx is kAvx512 with
// AMX for products of several int8 vectors, and asks the operating system for its registers.
bool supported(Isa isa);

// The widest vectors that are supported: any but kAmx.
Isa best_isa();
// kAmx if it is supported, else best_isa(); for code that multiplies int8 matrices.
Isa best_matrix_isa();

// "scalar", "avx2", "avx512", "amx" or "auto"; throws std::invalid_argument for anything else and
// for what this processor lacks.
Isa parse_isa(std::string_view name);

}  // namespace qcompile

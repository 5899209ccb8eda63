// Instruction sets, chosen at run time. Code for each is compiled function by function.
#pragma once

#include <string_view>

#define QC_AVX2 __attribute__((target("avx2,fma")))
#define QC_AVX512                                                      \
  __attribute__((                                                      \
      target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma," \
             "prefer-vector-width=512")))
// For bodies that are compiled once per instruction set by inlining them into such functions.
#define QC_INLINE inline __attribute__((always_inline))

namespace qcompile {

enum class Isa { kScalar, kAvx2, kAvx512 };

// Whether this processor and operating system run it; kAvx512 includes VNNI.
bool supported(Isa isa);

// The widest that is supported.
Isa best_isa();

// "scalar", "avx2", "avx512" or "auto"; throws std::invalid_argument for anything else and for
// what this processor lacks.
Isa parse_isa(std::string_view name);

}  // namespace qcompile

// Vector intrinsics, without the warnings that GCC 12's own headers cause when inlined.
#pragma once

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

#include "core/isa.h"

namespace qcompile {

// sum += dot products of four unsigned bytes and four signed ones, in place: around the intrinsic
// GCC 12 copies every sum, through memory where there are many.
QC_AVX512 inline void add_dots(__m512i& sum, __m512i unsigned_bytes, __m512i signed_bytes) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(unsigned_bytes), "v"(signed_bytes));
}

}  // namespace qcompile

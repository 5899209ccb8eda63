// The inner loops over bins, per instruction set; results are equal.
#pragma once

#include <cstdint>

#include "core/isa.h"
#include "lsh/bins.h"

namespace qcompile {

struct BinKernels {
  // See Bins; `starts` [count, kBin] says where in `columns` the values of kLanes rows are.
  void (*winners)(const float* columns, const uint32_t* starts, int64_t count, int32_t* codes);
  void (*rank)(const float* columns, const uint32_t* starts, int64_t count,
               const RankedCodes& ranked);
  void (*find_empty)(const float* columns, const uint32_t* starts, int64_t count, uint32_t* empty);
  bool (*any_zero)(const float* columns, int64_t dimension);
};

const BinKernels& bin_kernels(Isa isa);

}  // namespace qcompile

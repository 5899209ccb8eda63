#include "index/dot_int8.h"

namespace qcompile {
namespace {

void nothing() {}
void nothing_for(const DotQueries&) {}

void dots_scalar(const int8_t* packed, const DotQueries& queries, int32_t* dots) {
  for (int64_t query = 0; query < queries.count; ++query) {
    const int8_t* x = queries.values + query * queries.stride;
    for (int64_t row = 0; row < kTileRows; ++row) {
      const int8_t* values =
          packed + row / kBlockRows * queries.steps * kStepBytes + row % kBlockRows * kBlockDepth;
      int32_t sum = 0;
      for (int64_t step = 0; step < queries.steps; ++step) {
        for (int i = 0; i < kBlockDepth; ++i) {
          sum += values[step * kStepBytes + i] * x[step * kBlockDepth + i];
        }
      }
      dots[query * kTileRows + row] = sum;
    }
  }
}

void rough_dots_scalar(const uint8_t* rough, const DotQueries& queries, int32_t* dots) {
  const int64_t pairs = ceil_div(queries.steps, 2);
  for (int64_t query = 0; query < queries.count; ++query) {
    const int8_t* x = queries.values + query * queries.stride;
    for (int64_t row = 0; row < kTileRows; ++row) {
      const uint8_t* values =
          rough + row / kBlockRows * pairs * kStepBytes + row % kBlockRows * kBlockDepth;
      int32_t sum = -kRoughOffset * queries.sums[query];
      for (int64_t pair = 0; pair < pairs; ++pair) {
        for (int i = 0; i < kBlockDepth; ++i) {
          const int both = values[pair * kStepBytes + i];
          sum += ((both << 4) & 0xF0) * x[2 * pair * kBlockDepth + i];
          sum += (both & 0xF0) * x[(2 * pair + 1) * kBlockDepth + i];
        }
      }
      dots[query * kTileRows + row] = sum;
    }
  }
}

}  // namespace

const DotKernel kDotScalar{nothing_for, dots_scalar, rough_dots_scalar, nothing};

const DotKernel& dot_kernel(Isa isa, int64_t count) {
  constexpr int64_t kWorthTiles = 4;  // fewer queries leave most of a tile register empty
  switch (isa) {
    case Isa::kAmx:
      return count >= kWorthTiles ? kDotAmx : kDotAvx512;
    case Isa::kAvx512:
      return kDotAvx512;
    case Isa::kAvx2:
      return kDotAvx2;
    case Isa::kScalar:
      break;
  }
  return kDotScalar;
}

}  // namespace qcompile

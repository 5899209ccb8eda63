#include "index/dot_int8.h"

namespace qcompile {

DotKernel dot_kernel(Isa isa, int64_t count) {
  constexpr int64_t kWorthTiles = 4;  // fewer queries leave most of a tile register empty
  switch (isa) {
    case Isa::kAmx:
      return count >= kWorthTiles ? dot_int8_amx : dot_int8_avx512;
    case Isa::kAvx512:
      return dot_int8_avx512;
    case Isa::kAvx2:
      return dot_int8_avx2;
    case Isa::kScalar:
      break;
  }
  return dot_int8_scalar;
}

void dot_int8_scalar(const DotTile& tile, int32_t* dots) {
  for (int64_t query = 0; query < tile.count; ++query) {
    const uint8_t* x = tile.queries + query * tile.stride;
    for (int64_t block = 0; block < tile.blocks; ++block) {
      const int8_t* rows = tile.rows + block * tile.steps * kStepBytes;
      int32_t* out = dots + (query * tile.blocks + block) * kBlockRows;
      for (int lane = 0; lane < kBlockRows; ++lane) {
        int32_t sum = 0;
        for (int64_t step = 0; step < tile.steps; ++step) {
          for (int i = 0; i < kBlockDepth; ++i) {
            sum += rows[step * kStepBytes + lane * kBlockDepth + i] *
                   (x[step * kBlockDepth + i] - 128);
          }
        }
        out[lane] = sum;
      }
    }
  }
}

}  // namespace qcompile

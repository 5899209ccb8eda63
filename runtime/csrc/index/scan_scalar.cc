#include <algorithm>
#include <limits>

#include "index/scan_kernels.h"

namespace qcompile {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

uint64_t reach(const Tile& tile, const GroupDots& group, const float* bars, uint64_t* rows) {
  uint64_t any = 0;
  for (int64_t q = 0; q < group.count; ++q) {
    rows[q] = 0;
    for (int64_t row = 0; row < kTileRows; ++row) {
      const float dot = static_cast<float>(group.dots[q * kTileRows + row]);
      const float product = dot * group.scales[q] + group.widths[q];
      const float upper = product * tile.scale[row] + tile.bias[row];
      rows[q] |= uint64_t{!(upper < bars[q])} << row;
    }
    any |= uint64_t{rows[q] != 0} << q;
  }
  return any;
}

float greater(float value, float best) { return value > best ? value : best; }

float scores(const Tile& tile, const TileDots& query, float* scores, float* peaks) {
  float best = -kInfinity;
  std::fill_n(peaks, kBlockRows, -kInfinity);
  for (int64_t row = 0; row < kTileRows; ++row) {
    const float dot = static_cast<float>(query.dots[row]);
    const float score = dot * (tile.scale[row] * query.scale) + tile.bias[row];
    const float width = tile.scale[row] * query.width;
    float& peak = peaks[row % kBlockRows];
    peak = greater(score + width, peak);
    best = greater(score - width, best);
    scores[row] = score;
  }
  return best;
}

}  // namespace

const ScanKernels kScanScalar{reach, scores};

const ScanKernels& scan_kernels(Isa isa) {
  if (isa == Isa::kScalar) return kScanScalar;
  return isa == Isa::kAvx2 ? kScanAvx2 : kScanAvx512;
}

}  // namespace qcompile

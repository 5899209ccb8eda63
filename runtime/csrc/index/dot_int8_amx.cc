// AMX: sixteen queries times sixteen rows, 64 coordinates at a time. As with VNNI, queries are
// unsigned and the sums start at the correction; a packed block is a tile's right operand as it is.
#include <algorithm>

#include "core/intrinsics.h"
#include "index/dot_int8.h"

namespace qcompile {
namespace {

constexpr int64_t kTileSteps = 16;  // steps of four coordinates that one tile register holds

// Shapes of the eight tile registers, in the processor's own layout.
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// 0: sums. 1 and 2: queries and rows, sixteen steps. 3 and 4: the same for what remains.
QC_AMX void configure(int64_t queries, int64_t rest) {
  TileConfig config;
  const auto set = [&config](int tile, int64_t rows, int64_t bytes) {
    config.rows[tile] = static_cast<uint8_t>(rows);
    config.row_bytes[tile] = static_cast<uint16_t>(bytes);
  };
  set(0, queries, kStepBytes);
  set(1, queries, kTileSteps * kBlockDepth);
  set(2, kTileSteps, kStepBytes);
  if (rest > 0) {
    set(3, queries, rest * kBlockDepth);
    set(4, rest, kStepBytes);
  }
  _tile_loadconfig(&config);
}

}  // namespace

QC_AMX void dot_int8_amx(const DotTile& tile, int32_t* dots) {
  const int64_t width = tile.steps * kBlockDepth, rest = tile.steps % kTileSteps;
  for (int64_t query = 0; query < tile.count; query += 16) {
    configure(std::min<int64_t>(16, tile.count - query), rest);
    const uint8_t* x = tile.queries + query * width;
    for (int64_t block = 0; block < tile.blocks; ++block) {
      const int8_t* rows = tile.rows + block * tile.steps * kStepBytes;
      _tile_loadd(0, tile.figures[block].correction, 0);  // the same for every query
      int64_t step = 0;
      for (; step + kTileSteps <= tile.steps; step += kTileSteps) {
        _tile_loadd(1, x + step * kBlockDepth, width);
        _tile_loadd(2, rows + step * kStepBytes, kStepBytes);
        _tile_dpbusd(0, 1, 2);
      }
      if (rest > 0) {
        _tile_loadd(3, x + step * kBlockDepth, width);
        _tile_loadd(4, rows + step * kStepBytes, kStepBytes);
        _tile_dpbusd(0, 3, 4);
      }
      int32_t* out = dots + (query * tile.blocks + block) * kBlockRows;
      _tile_stored(0, out, tile.blocks * kStepBytes);
    }
  }
  _tile_release();
}

}  // namespace qcompile

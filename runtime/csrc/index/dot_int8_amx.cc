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

// 0 and 1: sums of two blocks. 2, 3 and 4: queries and the rows of two blocks, sixteen steps.
// 5, 6 and 7: the same for the steps that remain.
QC_AMX void configure(int64_t queries, int64_t rest) {
  TileConfig config;
  const auto set = [&config](int tile, int64_t rows, int64_t bytes) {
    config.rows[tile] = static_cast<uint8_t>(rows);
    config.row_bytes[tile] = static_cast<uint16_t>(bytes);
  };
  set(0, queries, kStepBytes);
  set(1, queries, kStepBytes);
  set(2, queries, kTileSteps * kBlockDepth);
  set(3, kTileSteps, kStepBytes);
  set(4, kTileSteps, kStepBytes);
  if (rest > 0) {
    set(5, queries, rest * kBlockDepth);
    set(6, rest, kStepBytes);
    set(7, rest, kStepBytes);
  }
  _tile_loadconfig(&config);
}

// Sixteen queries and two blocks; the second is the first again where there is only one.
QC_AMX void two_blocks(const DotTile& tile, const uint8_t* x, int64_t first, int64_t second,
                       int32_t* out) {
  const int64_t bytes = tile.steps * kStepBytes;
  const int8_t* rows0 = tile.rows + first * bytes;
  const int8_t* rows1 = tile.rows + second * bytes;
  _tile_loadd(0, tile.figures[first].correction, 0);  // the same for every query
  _tile_loadd(1, tile.figures[second].correction, 0);
  int64_t step = 0;
  for (; step + kTileSteps <= tile.steps; step += kTileSteps) {
    _tile_loadd(2, x + step * kBlockDepth, tile.stride);
    _tile_loadd(3, rows0 + step * kStepBytes, kStepBytes);
    _tile_loadd(4, rows1 + step * kStepBytes, kStepBytes);
    _tile_dpbusd(0, 2, 3);
    _tile_dpbusd(1, 2, 4);
  }
  if (step < tile.steps) {
    _tile_loadd(5, x + step * kBlockDepth, tile.stride);
    _tile_loadd(6, rows0 + step * kStepBytes, kStepBytes);
    _tile_loadd(7, rows1 + step * kStepBytes, kStepBytes);
    _tile_dpbusd(0, 5, 6);
    _tile_dpbusd(1, 5, 7);
  }
  _tile_stored(0, out + first * kBlockRows, tile.blocks * kStepBytes);
  _tile_stored(1, out + second * kBlockRows, tile.blocks * kStepBytes);
}

}  // namespace

QC_AMX void dot_int8_amx(const DotTile& tile, int32_t* dots) {
  for (int64_t query = 0; query < tile.count; query += 16) {
    configure(std::min<int64_t>(16, tile.count - query), tile.steps % kTileSteps);
    const uint8_t* x = tile.queries + query * tile.stride;
    int32_t* out = dots + query * tile.blocks * kBlockRows;
    for (int64_t block = 0; block < tile.blocks; block += 2) {
      two_blocks(tile, x, block, std::min(block + 1, tile.blocks - 1), out);
    }
  }
  _tile_release();
}

}  // namespace qcompile

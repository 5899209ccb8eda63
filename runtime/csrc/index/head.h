// An output layer: scores = hidden . weight^T + bias, with its rows packed for a quantised scan.
#pragma once

#include <cstdint>
#include <vector>

#include "core/isa.h"
#include "core/parallel.h"
#include "index/layout.h"
#include "index/rough_rows.h"

namespace qcompile {

// A dense layer; the arrays belong to the caller.
struct Dense {
  const float* weight = nullptr;  // [rows, depth]
  const float* bias = nullptr;    // [rows]
  int64_t rows = 0;
  int64_t depth = 0;
};

struct Packed {
  const int8_t* packed = nullptr;  // [block_count, step_count, 16, 4]
  const float* scale = nullptr;    // [rows]
  const float* error = nullptr;    // [rows]
};

// Blocks that are scanned together.
inline constexpr int64_t kTileBlocks = 4;
inline constexpr int64_t kTileRows = kTileBlocks * kBlockRows;
static_assert(kTileRows == 64, "one bit of a word for each");

// Rows [first, first + rows) of a layer. Arrays are as long as if rows were kTileRows.
struct Tile {
  int64_t first;
  int64_t rows;
  const int8_t* packed;  // kTileBlocks blocks, and room for a tile register to read beyond them
  const float* scale;
  const float* bias;  // minus infinity for rows that do not exist
  RowBounds bounds;
};

// Whether a head keeps four bits of each value apart, for scans that wait for memory.
enum class RoughRows { kNever, kIfLarge, kAlways };

// Immutable once made, so any number of threads may use one.
class Head {
 public:
  // Only dense: every operator computes every score in fp32.
  explicit Head(const Dense& dense);
  // Throws std::invalid_argument for a scale or error that is negative, not finite, or subnormal.
  Head(const Dense& dense, const Packed& packed, const Executor& executor,
       RoughRows rough = RoughRows::kNever);

  const Dense& dense() const { return dense_; }
  int64_t rows() const { return dense_.rows; }
  int64_t depth() const { return dense_.depth; }
  // Whether a quantised scan is possible.
  bool packed() const { return !bounds_.empty(); }
  // Whether a scan of four bits is, too.
  bool rough() const { return !rough_.empty(); }
  int64_t tiles() const { return static_cast<int64_t>(bounds_.size()); }
  Tile tile(int64_t index) const;
  const RowBounds& bounds(int64_t tile) const { return bounds_[static_cast<size_t>(tile)]; }
  // The high halves of a tile's values; see index/rough_rows.h.
  const uint8_t* rough_tile(int64_t index) const {
    return rough_.data() + index * kTileBlocks * rough_block_bytes(depth());
  }
  // The greatest error of a row whose scale is zero.
  float unscaled_error() const { return unscaled_error_; }

 private:
  void check(const Packed& packed);
  void copy_last_tile(const Packed& packed);

  Dense dense_;
  Packed packed_;
  std::vector<RowBounds> bounds_;  // of each tile
  RoughPlane rough_;
  float unscaled_error_ = 0;
  // The last tile, padded.
  std::vector<int8_t> last_packed_;
  float last_scale_[kTileRows] = {};
  float last_bias_[kTileRows] = {};
};

}  // namespace qcompile

// An output layer: scores = hidden . weight^T + bias, with its rows packed for a quantised scan.
#pragma once

#include <cstdint>
#include <vector>

#include "core/isa.h"
#include "core/parallel.h"
#include "index/layout.h"
#include "index/planes.h"

namespace qcompile {

// Quantised rows; see index/planes.h. Arrays belong to the caller.
struct Packed {
  const uint8_t* high = nullptr;  // [block_count, pair_count, 16, 4]
  const uint8_t* low = nullptr;   // the same; null for rough rows
  const float* scale = nullptr;   // [rows]
  const float* error = nullptr;   // [rows]
};

// A layer; the arrays belong to the caller. Of its rows there is one form: float32, else bfloat16,
// else the quantised ones, of which scale times value is the row.
struct Dense {
  const float* weight = nullptr;  // [rows, depth]
  const float* bias = nullptr;    // [rows]
  int64_t rows = 0;
  int64_t depth = 0;
  const uint16_t* half = nullptr;  // [rows, depth], bfloat16
  Packed quantised = {};
};

// Blocks that are scanned together.
inline constexpr int64_t kTileBlocks = 4;
inline constexpr int64_t kTileRows = kTileBlocks * kBlockRows;
static_assert(kTileRows == 64, "one bit of a word for each");

// Rows [first, first + rows) of a layer. Arrays are as long as if rows were kTileRows.
struct Tile {
  int64_t first;
  int64_t rows;
  const uint8_t* high;  // kTileBlocks blocks
  const uint8_t* low;   // null for rough rows
  const float* scale;
  const float* bias;  // minus infinity for rows that do not exist
  RowBounds bounds;
};

// Whether few queries are answered from the plane of high halves first.
enum class RoughRows { kNever, kIfLarge, kAlways };

// Immutable once made, so any number of threads may use one.
class Head {
 public:
  // Only dense: every operator computes every score in fp32.
  explicit Head(const Dense& dense);
  // Throws std::invalid_argument for a scale or error that is negative, not finite, or subnormal.
  // Without any other form of the rows the packed ones are the layer's, both planes of them.
  Head(const Dense& dense, const Packed& packed, const Executor& executor,
       RoughRows rough = RoughRows::kNever);

  const Dense& dense() const { return dense_; }
  int64_t rows() const { return dense_.rows; }
  int64_t depth() const { return dense_.depth; }
  // Whether a quantised scan is possible.
  bool packed() const { return !bounds_.empty(); }
  // The most answers of a query for which a first pass by the high four bits pays.
  int64_t rough_best() const { return rough_best_; }
  // Whether there are eight bits at all.
  bool fine() const { return packed_.low != nullptr; }
  int64_t tiles() const { return static_cast<int64_t>(bounds_.size()); }
  Tile tile(int64_t index) const;
  const RowBounds& bounds(int64_t tile) const { return bounds_[static_cast<size_t>(tile)]; }
  // Steps of merged rows, and bytes of a tile of them, with room for a tile register to read
  // beyond.
  int64_t steps() const { return 2 * pair_count(step_count(depth())); }
  int64_t merged_bytes() const;
  // Puts a tile's packed rows [kTileBlocks, steps(), 16, 4] together.
  void merge(const Tile& tile, int8_t* rows, Isa isa) const;
  // The greatest error of a row whose scale is zero.
  float unscaled_error() const { return unscaled_error_; }
  // An upper bound of the norms of all rows, of a packed layer.
  float greatest_norm() const { return greatest_norm_; }

 private:
  void check(const Packed& packed);
  void copy_last_tile(const Packed& packed);

  Dense dense_;
  Packed packed_;
  std::vector<RowBounds> bounds_;  // of each tile
  int64_t rough_best_ = 0;
  float unscaled_error_ = 0;
  float greatest_norm_ = 0;
  // The last tile, padded.
  std::vector<uint8_t> last_high_, last_low_;
  float last_scale_[kTileRows] = {};
  float last_bias_[kTileRows] = {};
};

}  // namespace qcompile

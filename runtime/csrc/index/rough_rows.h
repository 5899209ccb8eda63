// The high four bits of packed values, apart: half the bytes for a scan that waits for memory.
//
// A packed value q, offset by 128, is 16 h + l. The rough row has 16 h - 120 in its place, so it is
// off by l - 8 at each coordinate, -8 to 7. A step of four coordinates of 16 rows and the next one
// share 64 bytes: h of the former in the low halves, h of the latter in the high ones.
#pragma once

#include <cstdint>
#include <memory>

#include "core/isa.h"
#include "core/parallel.h"
#include "index/layout.h"

namespace qcompile {

inline constexpr int kRoughOffset = 120;
inline constexpr int64_t rough_block_bytes(int64_t depth) {
  return ceil_div(step_count(depth), 2) * kStepBytes;
}

// What bounds the quantisation error of a tile's rows, in units of their scales, rounded up: the
// greatest norm of a row's error and of its quantised form, by eight bits and by four.
struct RowBounds {
  float error = 0;
  float norm = 0;
  float rough_error = 0;
  float rough_norm = 0;
};

// Bytes on huge pages, where the system has them.
class RoughPlane {
 public:
  RoughPlane() = default;
  explicit RoughPlane(int64_t bytes);
  bool empty() const { return !bytes_; }
  uint8_t* data() { return bytes_.get(); }
  const uint8_t* data() const { return bytes_.get(); }

 private:
  struct Free {
    void operator()(uint8_t* bytes) const;
  };
  std::unique_ptr<uint8_t[], Free> bytes_;
};

// Sums over one row's coordinates.
struct RowSums {
  double squares = 0;        // of its values
  double rough_squares = 0;  // of its rough values
  double difference = 0;     // of their differences, squared
};

// Sums of the rows of a packed block.
void sum_block(const int8_t* block, int64_t steps, RowSums (&sums)[kBlockRows], Isa isa);

// Writes the high halves of a block of `steps` steps.
void split_block(const int8_t* block, int64_t steps, uint8_t* rough, Isa isa);

}  // namespace qcompile

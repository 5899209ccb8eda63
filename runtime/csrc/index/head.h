// An output layer: scores = hidden . weight^T + bias, with its rows packed for an int8 scan.
#pragma once

#include <cstdint>
#include <vector>

#include "core/isa.h"
#include "core/parallel.h"
#include "index/layout.h"

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

// What the scan needs of 16 rows, besides their packed values.
struct alignas(64) BlockFigures {
  float scale[kBlockRows];
  float bias[kBlockRows];
  float error[kBlockRows];         // norm of w - scale * q, rounded up
  float norm[kBlockRows];          // norm of scale * q, rounded up
  int32_t correction[kBlockRows];  // -128 * sum of q: undoes the offset of unsigned queries
};

// Immutable once made, so any number of threads may use one.
class Head {
 public:
  // Only dense: every operator computes every score in fp32.
  explicit Head(const Dense& dense);
  // Throws std::invalid_argument for a scale or error that is negative or not finite.
  Head(const Dense& dense, const Packed& packed, const Executor& executor);

  const Dense& dense() const { return dense_; }
  int64_t rows() const { return dense_.rows; }
  int64_t depth() const { return dense_.depth; }
  // Whether the int8 scan is possible.
  bool packed() const { return !figures_.empty(); }
  const int8_t* block(int64_t index) const {
    return packed_ + index * step_count(depth()) * kStepBytes;
  }
  const BlockFigures* figures(int64_t block) const { return figures_.data() + block; }
  // The greatest error and norm of a block's rows, block after block, and zeros after the last.
  const float* block_errors(int64_t block) const { return block_error_.data() + block; }
  const float* block_norms(int64_t block) const { return block_norm_.data() + block; }

 private:
  Dense dense_;
  const int8_t* packed_ = nullptr;
  std::vector<BlockFigures> figures_;
  std::vector<float> block_error_;
  std::vector<float> block_norm_;
};

}  // namespace qcompile

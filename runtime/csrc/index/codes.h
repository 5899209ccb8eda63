// Rows of cells as short codes: how far each is from its cell's packed centroid, in a few levels.
// Its ground truth is runtime/reference/codes.py.
//
// A code c of `bits` bits stands for the level v = 2c + 1 - 2^bits, and a row for its centroid plus
// scale * v. Blocks have 16 rows; a byte holds 8 / bits codes, the first in its lowest bits, each
// kBlockDepth coordinates after the one before it. So the codes of one step, with the others
// masked, are what a dot product takes of kBlockDepth consecutive coordinates.
#pragma once

#include <cstdint>
#include <vector>

#include "core/parallel.h"
#include "index/head.h"
#include "index/layout.h"

namespace qcompile {

// Whether there are codes of so many bits.
inline constexpr bool codable(int64_t bits) { return bits == 2 || bits == 4; }
inline constexpr int64_t codes_per_byte(int64_t bits) { return 8 / bits; }
// Steps of a block, of kStepBytes each.
inline constexpr int64_t code_step_count(int64_t depth, int64_t bits) {
  return ceil_div(depth, kBlockDepth * codes_per_byte(bits));
}

// Where the rows of a layer and the centroids of their cells are, as in index/cells.h.
struct CodedPlaces {
  int64_t blocks = 0;
  int64_t cells = 0;
  const uint32_t* offsets = nullptr;      // [cells + 1]
  const int32_t* row_ids = nullptr;       // [blocks * 16]
  const int8_t* centroids = nullptr;      // [block_count(cells), step_count, 16, 4]
  const float* centroid_scale = nullptr;  // [cells]
};

struct CodedRows {
  std::vector<uint8_t> codes;  // [blocks, code_step_count, 16, 4]
  std::vector<float> scale;    // [blocks * 16]
  std::vector<float> error;    // [blocks * 16], bounds of the norms of what is left
};

// Codes the rows of a layer in fp32. The levels are those of a uniform quantiser of a normal
// distribution at first (Max, "Quantizing for minimum distortion", 1960), then scale and codes are
// each chosen for the least squares, in turn. The last scale is the one with which a row has all of
// its own score against itself: the rows that score best are like the hidden vector, and the least
// squares would sell them short (Gao and Long, "RaBitQ", SIGMOD 2024, section 3.2). The result does
// not depend on the number of threads or the instruction set. Throws std::invalid_argument for
// places that are not there.
CodedRows code_rows(const Dense& dense, const CodedPlaces& places, int64_t bits,
                    const Executor& executor);

}  // namespace qcompile

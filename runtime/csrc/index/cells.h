// An output layer whose rows lie in cells, learned buckets of rows that are near each other, so
// that a search reads only those that promise most. runtime/reference/cells.py is its ground truth.
#pragma once

#include <cstdint>
#include <vector>

#include "core/isa.h"
#include "core/parallel.h"
#include "index/cell_kernels.h"
#include "index/code_kernels.h"
#include "index/codes.h"
#include "index/head.h"

namespace qcompile {

// The constants of a file, of which nothing has been checked but their extents.
struct CellArrays {
  int64_t blocks = 0;
  int64_t cells = 0;
  const int8_t* packed = nullptr;  // [blocks, step_count, 16, 4], cell after cell; null with codes
  const float* scale = nullptr;    // [blocks * 16]
  const float* error = nullptr;    // [blocks * 16]
  const uint32_t* offsets = nullptr;      // [cells + 1] first block of each cell
  const int32_t* row_ids = nullptr;       // [blocks * 16] row of the layer, or -1
  const int8_t* centroids = nullptr;      // [block_count(cells), step_count, 16, 4]
  const float* centroid_scale = nullptr;  // [cells]
  const float* cell_bias = nullptr;       // [cells]
  const float* cell_spread = nullptr;     // [cells]
  int64_t groups = 0;
  const uint32_t* group_offsets = nullptr;  // [groups + 1] first block of centroids of each group
  const int8_t* group_centroids = nullptr;  // [block_count(groups), step_count, 16, 4]
  const float* group_scale = nullptr;       // [groups]
  const float* group_bias = nullptr;        // [groups]
  const float* group_spread = nullptr;      // [groups]
  int64_t bits = 8;                         // 2 or 4 with codes
  const uint8_t* codes = nullptr;           // [blocks, code_step_count, 16, 4], see index/codes.h
};

// Immutable once made, so any number of threads may use one.
class CellIndex {
 public:
  // Throws std::invalid_argument, naming the array and the place in it, unless every row lies in
  // exactly one cell and every value is usable.
  CellIndex(const Dense& dense, const CellArrays& arrays, const Executor& executor);

  const Dense& dense() const { return dense_; }
  int64_t cells() const { return arrays_.cells; }
  // Whether rows are codes; there is either rows() or codes().
  bool coded() const { return arrays_.codes != nullptr; }
  PackedBlocks rows() const { return {arrays_.packed, row_terms_.data(), steps()}; }
  CodedBlocks codes() const {
    return {arrays_.codes, arrays_.scale, code_biases_.data(),
            code_step_count(dense_.depth, arrays_.bits), arrays_.bits};
  }
  PackedBlocks centroids() const { return {arrays_.centroids, centroid_terms_.data(), steps()}; }
  int64_t groups() const { return arrays_.groups; }
  PackedBlocks groups_of_cells() const {
    return {arrays_.group_centroids, group_terms_.data(), steps()};
  }
  const float* group_spread() const { return arrays_.group_spread; }
  int32_t first_centroids(int64_t group) const {
    return static_cast<int32_t>(arrays_.group_offsets[group]);
  }
  int64_t steps() const { return step_count(dense_.depth); }
  int32_t first_block(int64_t cell) const { return static_cast<int32_t>(arrays_.offsets[cell]); }
  int32_t id(uint32_t place) const { return arrays_.row_ids[place]; }
  const float* spread() const { return arrays_.cell_spread; }
  // How far the finite biases of a cell's rows spread about what its score has of them.
  const float* bias_spread() const { return bias_spread_.data(); }
  // The logarithm of the sum of the exponentials of a cell's biases, less what its score has of
  // them: added to its score it says what the cell adds to the partition function if its weights do
  // not spread. Minus infinity for a cell of nothing.
  const float* mass() const { return mass_.data(); }
  // The greatest of all rows, for the error bound in index/query.h; of packed rows.
  float error() const { return error_; }
  float norm() const { return norm_; }
  // Rows of a cell, without padding.
  int64_t size(int64_t cell) const { return sizes_[static_cast<size_t>(cell)]; }

 private:
  void check_figures() const;
  void check_places();
  void sum_up_biases();
  void take_packed(const Executor& executor);
  void take_codes();

  Dense dense_;
  CellArrays arrays_;
  std::vector<BlockTerms> row_terms_;
  std::vector<BlockBiases> code_biases_;
  std::vector<BlockTerms> centroid_terms_;
  std::vector<BlockTerms> group_terms_;
  std::vector<int32_t> sizes_;
  std::vector<float> bias_spread_, mass_;
  float error_ = 0, norm_ = 0;
};

struct CellSearch {
  int64_t k = 1;
  int64_t probes = 1;   // cells that are searched
  int64_t groups = 1;   // groups of cells among which they are looked for; all with a guard
  int64_t rescore = 1;  // best rows of those that are scored in fp32; k at least
  // Multiple of a cell's spread that counts for it. The spread is the square root of the sum of two
  // squares: that of its weights times the query's norm, and that of its biases.
  float spread = 0;
  // Further cells are searched while one's score, with this multiple of its spread, reaches the
  // k-th best score found, of codes what is known of it in fp32; 0 searches none.
  float guard = 0;
  // Whether the partition function is wanted, to which every cell adds: their scores are needed, so
  // cells are looked for in all groups.
  bool sum = false;
  // How much the spread of a cell's weights counts in its part of the partition function: with 1 as
  // if scores in a cell were normally distributed, and its rows spread alike in every direction.
  float variance = 1;
};

// The k largest scores of rows in the cells of the greatest scores, for each of `count` hidden
// vectors [count, depth]: into scores and ids [count, k], ordered as by linear_top_k. The cells are
// looked for in the groups of the greatest scores, or in all where those hold too few rows; as many
// more cells are searched as it takes to find k rows. A vector with NaN or infinity, or one for
// which fewer than k rows have a score above minus infinity, gets what linear_top_k finds. The
// result does not depend on the instruction set, the number of threads or the other vectors. Throws
// std::invalid_argument unless 1 <= k <= rows.
//
// With `sum` the logarithm of the partition function goes into log_sums [count]: of the final
// scores of the rows that get one, of the int8 scores of the others in the cells that are searched,
// and for the rest
// what the cells' scores and `variance` say. That is an estimate without a
// bound, and may depend on the other vectors as far as sums in another order do. It is NaN or
// infinite where the greatest score is.
void cells_top_k(const CellIndex& index, const CellSearch& search, const float* hidden,
                 int64_t count, float* scores, int64_t* ids, float* log_sums,
                 const Executor& executor, Isa isa = best_matrix_isa());

}  // namespace qcompile

#include "index/cells.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

namespace qcompile {
namespace {

constexpr float kLowest = std::numeric_limits<float>::lowest();
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int64_t kMostBlocks = std::numeric_limits<int32_t>::max() / kBlockRows;

[[noreturn]] void refuse(const char* name, int64_t at, const std::string& found,
                         const std::string& expected) {
  throw std::invalid_argument("input '" + std::string(name) + "': [" + std::to_string(at) +
                              "] is " + found + ", expected " + expected);
}

// Offsets [count + 1] have to rise from 0 to `end`.
void require_offsets(const char* name, const uint32_t* offsets, int64_t count, int64_t end,
                     const char* of) {
  if (offsets[0] != 0) refuse(name, 0, std::to_string(offsets[0]), "0");
  const std::string all = "the " + std::to_string(end) + " blocks of input '" + of + "'";
  for (int64_t i = 0; i < count; ++i) {
    if (offsets[i + 1] >= offsets[i] && offsets[i + 1] <= end) continue;
    refuse(name, i + 1, std::to_string(offsets[i + 1]), std::to_string(offsets[i]) + " to " + all);
  }
  if (offsets[count] != end) refuse(name, count, std::to_string(offsets[count]), all);
}

void require_finite(const char* name, const float* values, int64_t count, float least) {
  for (int64_t i = 0; i < count; ++i) {
    if (std::isfinite(values[i]) && values[i] >= least) continue;
    refuse(name, i, std::to_string(values[i]),
           least == 0 ? "a finite value >= 0" : "a finite value");
  }
}

// -128 times the sums of a block's rows, and the sums of their squares.
void sum_rows(const int8_t* values, int64_t steps, int32_t* correction, int32_t* squares) {
  for (int lane = 0; lane < kBlockRows; ++lane) {
    int32_t sum = 0;
    squares[lane] = 0;
    for (int64_t step = 0; step < steps; ++step) {
      for (int i = 0; i < kBlockDepth; ++i) {
        const int32_t value = values[step * kStepBytes + lane * kBlockDepth + i];
        sum += value;
        squares[lane] += value * value;  // at most 2^14 * kMostPackedDepth
      }
    }
    correction[lane] = -128 * sum;
  }
}

// The terms of packed centroids.
std::vector<BlockTerms> terms_of(const int8_t* packed, int64_t count, int64_t steps,
                                 const float* scale, const float* bias) {
  std::vector<BlockTerms> terms(static_cast<size_t>(block_count(count)));
  int32_t unused[kBlockRows];
  for (int64_t block = 0; block < block_count(count); ++block) {
    BlockTerms& of = terms[static_cast<size_t>(block)];
    for (int64_t lane = 0; lane < kBlockRows; ++lane) {
      const int64_t at = block * kBlockRows + lane;
      of.scale[lane] = at < count ? scale[at] : 0;
      of.bias[lane] = at < count ? bias[at] : -kInfinity;
    }
    sum_rows(packed + block * steps * kStepBytes, steps, of.correction, unused);
  }
  return terms;
}

}  // namespace

CellIndex::CellIndex(const Dense& dense, const CellArrays& arrays, const Executor& executor)
    : dense_(dense), arrays_(arrays) {
  if (dense.depth > kMostPackedDepth || arrays.blocks > kMostBlocks) {
    throw std::invalid_argument("input 'packed': rows of " + std::to_string(dense.depth) +
                                " values in " + std::to_string(arrays.blocks) +
                                " blocks, expected at most " + std::to_string(kMostPackedDepth) +
                                " values and " + std::to_string(kMostBlocks) + " blocks");
  }
  if (arrays.codes == nullptr ? arrays.bits != 8 : !codable(arrays.bits)) {
    throw std::invalid_argument("attribute bits is " + std::to_string(arrays.bits) +
                                ", expected 8 for packed rows, 2 or 4 for codes");
  }
  check_figures();
  check_places();
  sum_up_biases();
  coded() ? take_codes() : take_packed(executor);
  centroid_terms_ =
      terms_of(arrays.centroids, cells(), steps(), arrays.centroid_scale, arrays.cell_bias);
  group_terms_ =
      terms_of(arrays.group_centroids, groups(), steps(), arrays.group_scale, arrays.group_bias);
}

void CellIndex::take_packed(const Executor& executor) {
  row_terms_.resize(static_cast<size_t>(arrays_.blocks));
  std::vector<float> norms(static_cast<size_t>(arrays_.blocks));
  parallel_for(executor, arrays_.blocks, 256, [&](int64_t begin, int64_t end) {
    int32_t squares[kBlockRows];
    for (int64_t block = begin; block < end; ++block) {
      BlockTerms& terms = row_terms_[static_cast<size_t>(block)];
      sum_rows(rows().block(block), steps(), terms.correction, squares);
      for (int lane = 0; lane < kBlockRows; ++lane) {
        const int64_t place = block * kBlockRows + lane;
        const int32_t id = arrays_.row_ids[place];
        // Padding scores minus infinity, below every row: a row's own is scanned as the lowest.
        terms.scale[lane] = id < 0 ? 0 : arrays_.scale[place];
        terms.bias[lane] = id < 0 ? -kInfinity : std::max(dense_.bias[id], kLowest);
        const double norm = static_cast<double>(terms.scale[lane]) *
                            std::sqrt(static_cast<double>(squares[lane])) * (1 + 0x1p-50);
        float& greatest = norms[static_cast<size_t>(block)];
        greatest = std::max(greatest, round_up(norm));
      }
    }
  });
  norm_ = *std::ranges::max_element(norms);
  error_ = *std::max_element(arrays_.error, arrays_.error + arrays_.blocks * kBlockRows);
}

void CellIndex::take_codes() {
  code_biases_.resize(static_cast<size_t>(arrays_.blocks));
  for (int64_t cell = 0; cell < cells(); ++cell) {
    for (int64_t place = int64_t{arrays_.offsets[cell]} * kBlockRows;
         place < int64_t{arrays_.offsets[cell + 1]} * kBlockRows; ++place) {
      const int32_t id = arrays_.row_ids[place];
      code_biases_[static_cast<size_t>(place / kBlockRows)].of[place % kBlockRows] =
          id < 0 ? -kInfinity : std::max(dense_.bias[id] - arrays_.cell_bias[cell], kLowest);
    }
  }
}

void CellIndex::sum_up_biases() {
  for (int64_t cell = 0; cell < cells(); ++cell) {
    double squares = 0, most = -kInfinity;
    std::vector<double> apart;  // from what the cell's score has of them
    for (int64_t place = int64_t{arrays_.offsets[cell]} * kBlockRows;
         place < int64_t{arrays_.offsets[cell + 1]} * kBlockRows; ++place) {
      const int32_t id = arrays_.row_ids[place];
      if (id < 0 || !std::isfinite(dense_.bias[id])) continue;
      apart.push_back(static_cast<double>(dense_.bias[id]) - arrays_.cell_bias[cell]);
      squares += apart.back() * apart.back();
      most = std::max(most, apart.back());
    }
    const auto finite = static_cast<double>(std::max<size_t>(apart.size(), 1));
    bias_spread_.push_back(finite_float(std::sqrt(squares / finite)));
    double sum = 0;
    for (double each : apart) sum += std::exp(each - most);
    mass_.push_back(apart.empty() ? -kInfinity : finite_float(most + std::log(sum)));
  }
}

void CellIndex::check_figures() const {
  const int64_t places = arrays_.blocks * kBlockRows;
  require_finite("scale", arrays_.scale, places, 0);
  require_finite("error", arrays_.error, places, 0);
  require_finite("centroid_scale", arrays_.centroid_scale, cells(), 0);
  require_finite("cell_bias", arrays_.cell_bias, cells(), kLowest);
  require_finite("cell_spread", arrays_.cell_spread, cells(), 0);
  require_finite("group_scale", arrays_.group_scale, groups(), 0);
  require_finite("group_bias", arrays_.group_bias, groups(), kLowest);
  require_finite("group_spread", arrays_.group_spread, groups(), 0);
}

void CellIndex::check_places() {
  const uint32_t* offsets = arrays_.offsets;
  require_offsets("offsets", offsets, cells(), arrays_.blocks, "packed");
  require_offsets("group_offsets", arrays_.group_offsets, groups(), block_count(cells()),
                  "centroids");
  std::vector<bool> seen(static_cast<size_t>(dense_.rows));
  sizes_.assign(static_cast<size_t>(cells()), 0);
  int64_t found = 0;
  for (int64_t cell = 0; cell < cells(); ++cell) {
    for (int64_t place = int64_t{offsets[cell]} * kBlockRows;
         place < int64_t{offsets[cell + 1]} * kBlockRows; ++place) {
      const int32_t id = arrays_.row_ids[place];
      if (id < -1 || id >= dense_.rows) {
        refuse("row_ids", place, std::to_string(id), "-1 to " + std::to_string(dense_.rows - 1));
      }
      if (id < 0) continue;
      if (seen[static_cast<size_t>(id)]) {
        refuse("row_ids", place, std::to_string(id), "each row once");
      }
      seen[static_cast<size_t>(id)] = true;
      ++sizes_[static_cast<size_t>(cell)];
      ++found;
    }
  }
  if (found != dense_.rows) {
    throw std::invalid_argument("input 'row_ids': " + std::to_string(found) +
                                " rows, expected all " + std::to_string(dense_.rows));
  }
}

}  // namespace qcompile

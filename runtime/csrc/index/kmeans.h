// Clusters of the rows of a matrix, by k-means over quantised rows.
#pragma once

#include <cstdint>
#include <iterator>
#include <span>
#include <vector>

#include "core/isa.h"
#include "core/parallel.h"

namespace qcompile {

// Rows as int8 values, and a scale each.
struct QuantisedRows {
  int64_t count = 0;
  int64_t depth = 0;
  int64_t stride = 0;          // bytes from one row to the next, a whole number of cache lines
  std::vector<int8_t> values;  // [count, stride], padded with zeros
  std::vector<int32_t> sums;   // of each row's values
  std::vector<float> scales;
  std::vector<float> errors;  // as pack_rows() has them

  const int8_t* row(int64_t index) const { return values.data() + index * stride; }
};

// Throws std::invalid_argument, naming the row, for NaN or infinity.
QuantisedRows quantise_rows(const float* weight, int64_t rows, int64_t depth,
                            const Executor& executor, Isa isa);

// Places of equal clusters brought together, in order.
class Members {
 public:
  Members(const std::vector<int32_t>& clusters, int64_t count);
  int64_t count() const { return std::ssize(offsets_) - 1; }
  int64_t total() const { return std::ssize(places_); }
  std::span<const int32_t> operator[](int64_t cluster) const {
    const auto at = static_cast<size_t>(cluster);
    return {places_.begin() + offsets_[at], places_.begin() + offsets_[at + 1]};
  }

 private:
  std::vector<int64_t> offsets_;
  std::vector<int32_t> places_;
};

struct ClusterOptions {
  int64_t clusters = 1;
  uint64_t seed = 0;
  int64_t coarse_rounds = 8;  // of Lloyd's algorithm on a sample, for the coarse clusters
  int64_t fine_rounds = 6;    // within every coarse cluster
  int64_t joint_rounds = 1;   // of all rows and clusters together
};

// Told how much of the work is done, from 0 to 1, by the calling thread; may throw to give up.
using Progress = FunctionRef<void(double)>;

// The cluster of each row, numbered without gaps; at most options.clusters of them. Clusters of
// like numbers are near each other.
//
// About sqrt(clusters) coarse ones are found on a sample of the rows, then each is divided, into
// shares as large as its part of the rows; then rows may move to any cluster. Distances are squared
// Euclidean, between rows and centroids in int8, so the result does not depend on the instruction
// set or the number of threads.
std::vector<int32_t> cluster_rows(const float* weight, const QuantisedRows& rows,
                                  const ClusterOptions& options, const Executor& executor,
                                  Progress progress, Isa isa);

}  // namespace qcompile

// fp32 scores of a range of rows for several hidden vectors at once.
#pragma once

#include <cstdint>
#include <iterator>
#include <span>
#include <vector>

#include "core/isa.h"
#include "index/head.h"

namespace qcompile {

// Hidden vectors in the order in which the kernels read them.
class DenseQueries {
 public:
  // Vectors of one panel, their coordinates side by side.
  struct Batch {
    int64_t first, count;
    int64_t together;     // count, rounded up to what a kernel multiplies
    const float* values;  // [depth, together]
  };

  // Vectors x[i] [depth], which the caller keeps.
  void assign(std::vector<const float*> x, int64_t depth);
  int64_t size() const { return std::ssize(x_); }
  const float* operator[](int64_t index) const { return x_[static_cast<size_t>(index)]; }
  // None for fewer vectors than kPanelQueries.
  std::span<const Batch> batches() const { return batches_; }

 private:
  std::vector<const float*> x_;
  std::vector<Batch> batches_;
  std::vector<float> values_;
};

// The scores of rows [begin, end) of query i into targets[i] [end - begin]. A score is one chain of
// fused multiply-adds in order of the coordinates, for every instruction set, plus the bias; for
// fewer than kPanelQueries queries it is sixteen such chains, added up pairwise.
void dense_scores(const Dense& dense, const DenseQueries& queries, int64_t begin, int64_t end,
                  std::span<float* const> targets, Isa isa);

inline constexpr int64_t kPanelQueries = 4;
// Rows that a panel transposes; ranges that start at a multiple of it waste nothing.
inline constexpr int64_t kPanelRows = 32;

}  // namespace qcompile

// fp32 scores of a range of rows for several hidden vectors at once.
#pragma once

#include <cstdint>
#include <span>

#include "core/isa.h"
#include "index/head.h"

namespace qcompile {

// One hidden vector and where its scores go: all of them, of which a call writes some.
struct DenseQuery {
  const float* x;  // [depth]
  float* scores;   // [rows]
};

// Writes the scores of rows begin..end-1. A score is one chain of fused multiply-adds in order of
// the coordinates, for every instruction set, plus the bias; for fewer than kPanelQueries queries
// it is sixteen such chains, added up pairwise.
void dense_scores(const Dense& dense, std::span<const DenseQuery> queries, int64_t begin,
                  int64_t end, Isa isa);

inline constexpr int64_t kPanelQueries = 4;
// Rows that a panel transposes; ranges that start at a multiple of it waste nothing.
inline constexpr int64_t kPanelRows = 32;

}  // namespace qcompile

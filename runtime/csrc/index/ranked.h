// Rows in order of their scores.
#pragma once

#include <cmath>
#include <cstdint>

namespace qcompile {

struct Ranked {
  float score;
  int32_t row;
};

// NaN comes before everything, and of equal scores the smaller row.
inline bool before(const Ranked& a, const Ranked& b) {
  if (std::isnan(a.score) != std::isnan(b.score)) return std::isnan(a.score);
  if (a.score != b.score && !std::isnan(a.score)) return a.score > b.score;
  return a.row < b.row;
}

}  // namespace qcompile

// Sums of the exponentials of scores, piece by piece while they are in the cache.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "core/isa.h"
#include "index/exponential.h"

namespace qcompile {

// The sum of exp(score - shift) of one piece of a layer for one query.
struct PieceSum {
  float shift;  // the greatest score
  double sum;   // NaN if a score is NaN or infinity
};

// Replaces scores [count] by exp(score - shift); what is minus infinity throughout by zeros.
inline PieceSum sum_piece(float* scores, int64_t count, Isa isa) {
  const float shift = greatest(scores, count, isa);
  if (shift == -std::numeric_limits<float>::infinity()) {
    const bool none = std::none_of(scores, scores + count, [](float s) { return std::isnan(s); });
    std::fill_n(scores, count, 0.0f);
    return {shift, none ? 0 : std::nan("")};
  }
  const double sum = exponentials(scores, count, shift, isa);
  return {shift, std::isfinite(sum) && std::isfinite(shift) ? sum : std::nan("")};
}

// Puts the pieces of one query together; a sum that is NaN stays so.
inline void accumulate(PieceSum& whole, const PieceSum& piece) {
  if (piece.sum == 0) return;
  const float shift = std::max(whole.shift, piece.shift);
  const auto weight = [shift](const PieceSum& part) {
    return part.sum == 0 ? 0 : part.sum * std::exp(static_cast<double>(part.shift) - shift);
  };
  whole = {shift, weight(whole) + weight(piece)};
}

}  // namespace qcompile

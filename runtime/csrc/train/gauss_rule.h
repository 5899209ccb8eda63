// Gauss quadrature of a positive measure that is known by its moments.
#pragma once

#include <span>

namespace qcompile {

struct GaussNode {
  double at;
  double weight;
};

// The two nodes with the moments Σ weight · at^p = moments[p], p = 0 … 3; three, p = 0 … 5. False,
// with nothing written, where rounding leaves no distinct positive nodes of positive weight, as it
// does if the measure has hardly more than fewer points.
bool gauss_rule(std::span<const double, 4> moments, std::span<GaussNode, 2> nodes);
bool gauss_rule(std::span<const double, 6> moments, std::span<GaussNode, 3> nodes);

}  // namespace qcompile

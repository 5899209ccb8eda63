#include "train/gauss_rule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace qcompile {
namespace {

// The weight of node a, beside others that are the roots of x² − sum x + product.
double weight_beside(std::span<const double> moments, double a, double sum, double product) {
  const double above = moments[2] - sum * moments[1] + product * moments[0];
  return above / (a * a - sum * a + product);
}

bool usable(std::span<const GaussNode> nodes) {
  return std::ranges::all_of(nodes, [](const GaussNode& node) {
    return std::isfinite(node.at) && std::isfinite(node.weight) && node.at > 0 && node.weight > 0;
  });
}

template <size_t kNodes>
bool give(const GaussNode (&found)[kNodes], std::span<GaussNode, kNodes> nodes) {
  if (!usable(found)) return false;
  std::ranges::copy(found, nodes.begin());
  return true;
}

}  // namespace

bool gauss_rule(std::span<const double, 4> m, std::span<GaussNode, 2> nodes) {
  const double determinant = m[0] * m[2] - m[1] * m[1];
  const double half = (m[0] * m[3] - m[1] * m[2]) / (2 * determinant);
  const double product = (m[1] * m[3] - m[2] * m[2]) / determinant;
  const double large = half + std::sqrt(half * half - product);
  const double small = product / large;
  const double share = (large * m[0] - m[1]) / (large - small);
  return give({{small, share}, {large, m[0] - share}}, nodes);
}

bool gauss_rule(std::span<const double, 6> m, std::span<GaussNode, 3> nodes) {
  // The nodes are the roots of x³ − a x² + b x − c, which is orthogonal to 1, x and x²:
  // m[k+3] = a m[k+2] − b m[k+1] + c m[k], by Cramer's rule.
  const auto determinant = [&](int i, int j, int k) {
    return m[i] * (m[j + 1] * m[k + 2] - m[j + 2] * m[k + 1]) -
           m[i + 1] * (m[j] * m[k + 2] - m[j + 2] * m[k]) +
           m[i + 2] * (m[j] * m[k + 1] - m[j + 1] * m[k]);
  };
  const double whole = determinant(0, 1, 2);
  const double a = determinant(0, 1, 3) / whole;
  const double b = determinant(0, 2, 3) / whole;
  const double c = determinant(1, 2, 3) / whole;
  // Its three real roots (Viète).
  const double centre = a / 3;
  const double spread = centre * centre - b / 3;
  const double offset = centre * (centre * centre - b / 2) + c / 2;
  const double angle = std::acos(std::clamp(offset / (spread * std::sqrt(spread)), -1.0, 1.0)) / 3;
  GaussNode found[3];
  for (int i = 0; i < 3; ++i) {
    found[i].at =
        centre + 2 * std::sqrt(spread) * std::cos(angle - 2 * std::numbers::pi * (2 - i) / 3);
  }
  for (int i = 0; i < 3; ++i) {
    const double other = found[(i + 1) % 3].at, another = found[(i + 2) % 3].at;
    found[i].weight = weight_beside(m, found[i].at, other + another, other * another);
  }
  return give(found, nodes);
}

}  // namespace qcompile

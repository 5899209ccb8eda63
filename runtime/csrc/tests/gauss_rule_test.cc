// Quadrature rules against the measures that their moments come from.
#include "train/gauss_rule.h"

#include <array>
#include <cmath>
#include <vector>

#include "tests/index_testing.h"

namespace qcompile {
namespace {

template <size_t kNodes>
std::array<double, 2 * kNodes> moments_of(const std::vector<GaussNode>& measure) {
  std::array<double, 2 * kNodes> moments{};
  for (const GaussNode& point : measure) {
    for (size_t p = 0; p < moments.size(); ++p) {
      moments[p] += point.weight * std::pow(point.at, static_cast<double>(p));
    }
  }
  return moments;
}

bool near(double a, double b) { return std::abs(a - b) < 1e-9 * std::abs(b); }

// As many points as nodes: the rule is the measure.
template <size_t kNodes>
void test_finds_the_points(const std::vector<GaussNode>& measure) {
  std::array<GaussNode, kNodes> nodes;
  const auto moments = moments_of<kNodes>(measure);
  EXPECT(gauss_rule(std::span<const double, 2 * kNodes>(moments), std::span(nodes)));
  for (size_t i = 0; i < kNodes; ++i) {
    EXPECT(near(nodes[i].at, measure[i].at) && near(nodes[i].weight, measure[i].weight));
  }
}

// More points: the rule has their moments.
template <size_t kNodes>
void test_has_the_moments(const std::vector<GaussNode>& measure) {
  std::array<GaussNode, kNodes> nodes;
  const auto moments = moments_of<kNodes>(measure);
  EXPECT(gauss_rule(std::span<const double, 2 * kNodes>(moments), std::span(nodes)));
  const auto found = moments_of<kNodes>({nodes.begin(), nodes.end()});
  for (size_t p = 0; p < moments.size(); ++p) EXPECT(near(found[p], moments[p]));
}

// Fewer points than nodes have no such rule.
template <size_t kNodes>
void test_refuses_one_point() {
  std::array<GaussNode, kNodes> nodes{};
  const auto moments = moments_of<kNodes>({{1.0, 2.0}});
  EXPECT(!gauss_rule(std::span<const double, 2 * kNodes>(moments), std::span(nodes)));
  EXPECT(nodes[0].weight == 0);
}

}  // namespace
}  // namespace qcompile

int main() {
  using namespace qcompile;
  test_finds_the_points<2>({{0.3, 2.0}, {1.7, 0.25}});
  test_finds_the_points<3>({{0.3, 2.0}, {0.9, 1.0}, {1.7, 0.25}});
  std::vector<GaussNode> spread;
  for (int i = 0; i < 40; ++i) spread.push_back({0.5 + 0.05 * i, std::pow(0.9, i)});
  test_has_the_moments<2>(spread);
  test_has_the_moments<3>(spread);
  test_refuses_one_point<2>();
  test_refuses_one_point<3>();
}

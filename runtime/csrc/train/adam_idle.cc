#include "train/adam_idle.h"

#include <algorithm>
#include <cmath>

namespace qcompile {
namespace {

// Largest error of one term and of two, by the spread of the b_k and by the moments they miss;
// both bound the relative error of the movement by 1e-5 for every ratio of √v to ε.
constexpr double kOneTerm = 4e-5;
constexpr double kTwoTerms = 1.6e-4;
// Listed terms are merged while that adds less to the error, and end when this much is left.
constexpr double kMerged = 5e-7;
constexpr double kLeft = 1e-6;

// What does not depend on the row: a_k, 1 / √(1 − β2^k) and √β2.
struct Factors {
  double step_size;
  double inverse_root;
  double root;
};

std::vector<Factors> factors_of(std::span<const AdamRates> history, int64_t before) {
  std::vector<Factors> factors(history.size());
  double power1 = 0;
  double power2 = 0;
  for (size_t i = 0; i < history.size(); ++i) {
    const AdamRates& rates = history[i];
    const bool same =
        i > 0 && rates.beta1 == history[i - 1].beta1 && rates.beta2 == history[i - 1].beta2;
    const auto k = static_cast<double>(before + static_cast<int64_t>(i) + 1);
    power1 = same ? power1 * rates.beta1 : std::pow(rates.beta1, k);
    power2 = same ? power2 * rates.beta2 : std::pow(rates.beta2, k);
    factors[i] = {rates.learning_rate / (1.0 - power1), 1.0 / std::sqrt(1.0 - power2),
                  std::sqrt(rates.beta2)};
  }
  return factors;
}

// Sums of c b^p over the idle steps after some step, p = −3 … 2.
struct Moments {
  double sum[6] = {};

  double of(int power) const { return sum[power + 3]; }

  // Adds an idle step before all others; they decay by β1 in c and by √β2 in b.
  void prepend(const AdamRates& rates, const Factors& factors, double later_shrink) {
    const double root = factors.root;
    const double added = factors.step_size * later_shrink;
    double decay = rates.beta1 / (root * root * root);
    double power = 1.0 / (factors.inverse_root * factors.inverse_root * factors.inverse_root);
    for (double& s : sum) {
      s = decay * (added * power + s);
      decay *= root;
      power *= factors.inverse_root;
    }
  }
};

IdleTerm term(double weight, double spread) {
  return {static_cast<float>(weight), static_cast<float>(spread)};
}

// The quadrature of two terms that has the moments −2 … 1, in units of the mean spread; whether
// it has the moments −3 and 2 nearly enough.
bool two_terms(const Moments& moments, std::vector<IdleTerm>& terms) {
  const double mean = moments.of(0) / moments.of(-1);
  const auto scaled = [&](int power) { return moments.of(power) * std::pow(mean, -power); };
  const double m0 = scaled(-2), m1 = scaled(-1), m2 = scaled(0), m3 = scaled(1);
  const double determinant = m0 * m2 - m1 * m1;
  const double half = (m0 * m3 - m1 * m2) / (2 * determinant);
  const double large = half + std::sqrt(half * half - (m1 * m3 - m2 * m2) / determinant);
  const double small = (m1 * m3 - m2 * m2) / determinant / large;
  const double share = (large * m0 - m1) / (large - small);  // of the smaller spread
  const double weight[] = {share * small * small, (m0 - share) * large * large};
  const double above = weight[0] * small * small + weight[1] * large * large;
  const double below = weight[0] / (small * small * small) + weight[1] / (large * large * large);
  const bool good =
      std::abs(above / scaled(2) - 1) < kTwoTerms && std::abs(below / scaled(-3) - 1) < kTwoTerms;
  if (good) {
    terms.push_back(term(weight[0], small * mean));
    terms.push_back(term(weight[1], large * mean));
  }
  return good;
}

// Neighbouring terms, to be replaced by one.
struct MergedTerms {
  double sum = 0;
  double scaled = 0;  // the sum of terms over their spreads
  double least = 0;
  double most = 0;

  void add(double weight, double spread) {
    least = sum == 0 ? spread : std::min(least, spread);
    most = sum == 0 ? spread : std::max(most, spread);
    sum += weight;
    scaled += weight / spread;
  }
  // The share that they have in the whole, times the error of one term for an even spread.
  double error(const Moments& whole) const {
    const double range = most / least - 1;
    return range * range / 48 * std::max(sum / whole.of(0), scaled / whole.of(-1));
  }
};

// The terms of idle steps `first` … of the history, with neighbours merged that are alike.
void listed_terms(std::span<const AdamRates> history, std::span<const Factors> factors,
                  std::span<const double> later_shrink, size_t first, const Moments& moments,
                  std::vector<IdleTerm>& terms) {
  double decay = 1;
  double root = 1;
  double left = 1, left_scaled = 1;
  MergedTerms merged;
  for (size_t i = first; i < history.size(); ++i) {
    decay *= history[i].beta1;
    root *= factors[i].root;
    const double weight = factors[i].step_size * decay * later_shrink[i];
    const double spread = root * factors[i].inverse_root;
    MergedTerms more = merged;
    more.add(weight, spread);
    if (merged.sum != 0 && !(more.error(moments) < kMerged && weight * merged.sum > 0)) {
      terms.push_back(term(merged.sum, merged.sum / merged.scaled));
      more = {};
      more.add(weight, spread);
    }
    merged = more;
    left -= weight / moments.of(0);
    left_scaled -= weight / spread / moments.of(-1);
    if (std::abs(left) < kLeft && std::abs(left_scaled) < kLeft) break;
  }
  if (merged.sum != 0) terms.push_back(term(merged.sum, merged.sum / merged.scaled));
}

}  // namespace

IdleTable adam_idle_table(std::span<const AdamRates> history, int64_t before) {
  IdleTable table;
  table.by_missed.resize(history.size() + 1);
  if (history.empty()) return table;
  table.epsilon = static_cast<float>(history.back().epsilon);
  const std::vector<Factors> factors = factors_of(history, before);
  std::vector<double> later_shrink(history.size());
  Moments moments;
  double shrink = 1;
  double first_decay = 1;
  double second_decay = 1;
  for (size_t i = history.size(); i-- > 0;) {
    const AdamRates& rates = history[i];
    later_shrink[i] = shrink;
    moments.prepend(rates, factors[i], shrink);
    shrink *= 1.0 - rates.learning_rate * rates.weight_decay;
    first_decay *= rates.beta1;
    second_decay *= rates.beta2;
    IdleStep& step = table.by_missed[history.size() - i];
    step.shrink = static_cast<float>(shrink);
    step.first_decay = static_cast<float>(first_decay);
    step.second_decay = static_cast<float>(second_decay);
    step.first_term = static_cast<uint32_t>(table.terms.size());
    if (moments.of(0) == 0) continue;  // no momentum, or a learning rate of 0
    const double variance = moments.of(1) * moments.of(-1) / (moments.of(0) * moments.of(0)) - 1;
    if (std::abs(variance) < kOneTerm) {
      table.terms.push_back(term(moments.of(0), moments.of(0) / moments.of(-1)));
    } else if (!two_terms(moments, table.terms)) {
      listed_terms(history, factors, later_shrink, i, moments, table.terms);
    }
    step.terms = static_cast<uint32_t>(table.terms.size()) - step.first_term;
  }
  return table;
}

}  // namespace qcompile

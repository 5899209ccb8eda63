#include "train/adam_idle.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <mutex>

#include "train/gauss_rule.h"

namespace qcompile {
namespace {

// Largest error of one term, by the spread of the b_k, and of several, by the moments they miss;
// both bound the relative error of the movement by 1e-5 for every ratio of √v to ε.
constexpr double kOneTerm = 4e-5;
constexpr double kMissed = 1.2e-4;
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

// Sums of c b^p over the idle steps after some step.
struct Moments {
  static constexpr int kLeast = -4;
  static constexpr int kMost = 3;
  double sum[kMost - kLeast + 1] = {};

  double of(int power) const { return sum[power - kLeast]; }

  // Adds an idle step before all others; they decay by β1 in c and by √β2 in b.
  void prepend(const AdamRates& rates, const Factors& factors, double later_shrink) {
    const double root = factors.root;
    const double added = factors.step_size * later_shrink;
    double decay = rates.beta1 * std::pow(root, kLeast);
    double power = std::pow(factors.inverse_root, kLeast);
    for (double& s : sum) {
      s = decay * (added * power + s);
      decay *= root;
      power *= factors.inverse_root;
    }
  }

  // The same in units of `unit` for b.
  Moments scaled(double unit) const {
    Moments result;
    double factor = std::pow(unit, -kLeast);
    for (size_t i = 0; i < std::size(sum); ++i, factor /= unit) result.sum[i] = sum[i] * factor;
    return result;
  }
};

IdleTerm term(double weight, double spread) {
  return {static_cast<float>(weight), static_cast<float>(spread)};
}

// The quadrature of kTerms terms that has the moments −kTerms … kTerms − 1; whether it has the next
// one on either side nearly enough, and was added.
template <int kTerms>
bool few_terms(const Moments& moments, std::vector<IdleTerm>& terms) {
  const double unit = moments.of(0) / moments.of(-1);
  const Moments scaled = moments.scaled(unit);
  GaussNode nodes[kTerms];  // of the measure c b^-kTerms
  const double* first = scaled.sum + (-kTerms - Moments::kLeast);
  if (!gauss_rule(std::span<const double, 2 * kTerms>(first, 2 * kTerms),
                  std::span<GaussNode, kTerms>(nodes))) {
    return false;
  }
  double below = 0, above = 0;
  for (const GaussNode& node : nodes) {
    below += node.weight / node.at;
    above += node.weight * std::pow(node.at, 2 * kTerms);
  }
  if (!(std::abs(below / scaled.of(-kTerms - 1) - 1) < kMissed &&
        std::abs(above / scaled.of(kTerms) - 1) < kMissed)) {
    return false;
  }
  for (const GaussNode& node : nodes) {
    terms.push_back(term(node.weight * std::pow(node.at, kTerms), node.at * unit));
  }
  return true;
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

// The latest tables, with what they were made of.
class RecentTables {
 public:
  std::shared_ptr<const IdleTable> get(std::span<const AdamRates> history, int64_t before) {
    const std::lock_guard lock(mutex_);
    for (const Entry& entry : entries_) {
      if (entry.before == before && std::ranges::equal(entry.history, history)) return entry.table;
    }
    Entry& oldest = entries_[next_++ % std::size(entries_)];
    auto table = std::make_shared<const IdleTable>(adam_idle_table(history, before));
    oldest = {{history.begin(), history.end()}, before, table};
    return table;
  }

 private:
  struct Entry {
    std::vector<AdamRates> history;
    int64_t before = -1;
    std::shared_ptr<const IdleTable> table;
  };
  std::mutex mutex_;
  Entry entries_[4];  // learning rates may differ from parameter to parameter
  size_t next_ = 0;
};

}  // namespace

std::shared_ptr<const IdleTable> shared_adam_idle_table(std::span<const AdamRates> history,
                                                        int64_t before) {
  static RecentTables tables;
  return tables.get(history, before);
}

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
    } else if (!few_terms<2>(moments, table.terms) && !few_terms<3>(moments, table.terms)) {
      listed_terms(history, factors, later_shrink, i, moments, table.terms);
    }
    step.terms = static_cast<uint32_t>(table.terms.size()) - step.first_term;
  }
  return table;
}

}  // namespace qcompile

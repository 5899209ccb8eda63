#include "train/row_adam.h"

#include <cmath>

namespace qcompile {
namespace {

GradientStep gradient_step(const AdamRates& rates, uint64_t step) {
  const double first = 1.0 - std::pow(rates.beta1, static_cast<double>(step));
  const double second = 1.0 - std::pow(rates.beta2, static_cast<double>(step));
  return {.shrink = static_cast<float>(1.0 - rates.learning_rate * rates.weight_decay),
          .first_rate = static_cast<float>(1.0 - rates.beta1),
          .second_rate = static_cast<float>(1.0 - rates.beta2),
          .second_decay = static_cast<float>(rates.beta2),
          .step_size = static_cast<float>(rates.learning_rate / first),
          .second_scale = static_cast<float>(1.0 / std::sqrt(second)),
          .epsilon = static_cast<float>(rates.epsilon)};
}

}  // namespace

void AdamRule::step(const RowBlock& block, const IdleTable& table, const float* gradients) const {
  kernels_->step(matrix_, block, table, gradients, gradient_step(rates_, block.steps));
}

}  // namespace qcompile

// What momentum does to a row that gets no gradient, for any number of steps at once.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace qcompile {

// Adam (Kingma and Ba, ICLR 2015) as torch.optim.Adam computes it; 0 ≤ β1 < 1, 0 < β2 < 1. With
// weight decay it is AdamW (Loshchilov and Hutter, ICLR 2019).
struct AdamRates {
  double learning_rate = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double epsilon = 1e-8;
  double weight_decay = 0;  // decoupled

  bool operator==(const AdamRates&) const = default;
};

// weight / (√second · spread + ε).
struct IdleTerm {
  float weight;
  float spread;
};

// value = shrink · value − first · Σ terms, then the moments decay.
struct IdleStep {
  float shrink = 1;
  float first_decay = 1;
  float second_decay = 1;
  uint32_t first_term = 0;
  uint32_t terms = 0;
};

struct IdleTable {
  std::vector<IdleStep> by_missed;  // indexed by the number of idle steps
  std::vector<IdleTerm> terms;
  float epsilon = 0;
};

// Idle at steps s+1 … t, with step sizes a_k = learning rate / (1 − β1^k), dense Adam moves a
// weight by
//   −m Σ c_k / (√v · b_k + ε),  c_k = a_k β1^(k−s),  b_k = √(β2^(k−s) / (1 − β2^k)),
// m and v being the moments at s; with decoupled decay, c_k also shrinks by what the later steps
// shrink the weight. As a function of √v the sum is a Stieltjes function of few scales: a Gauss
// quadrature of one to three terms equals it to five digits of the movement, and exactly where ε or
// √v is negligible. Where the b_k differ too much, as in the very first steps of a training, the
// terms themselves are listed.
//
// Returns the table for any number of the last steps of `history`, before which `before` steps
// were taken. All of the history must have one ε.
IdleTable adam_idle_table(std::span<const AdamRates> history, int64_t before);

// The same, made once for parameters that have followed the same steps, as those of one model do.
std::shared_ptr<const IdleTable> shared_adam_idle_table(std::span<const AdamRates> history,
                                                        int64_t before);

}  // namespace qcompile

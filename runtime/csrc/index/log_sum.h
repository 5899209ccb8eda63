// The k best rows of an output layer together with the logarithm of its partition function.
#pragma once

#include <cstdint>
#include <span>

#include "core/isa.h"
#include "core/parallel.h"
#include "index/head.h"

namespace qcompile {

// linear_top_k(), and into log_sums [count] the logarithm of the sum of the exponentials of all
// scores. It is off by at most 1e-5 and the rounding of floats: rows are rescored until the error
// bound proves that the others cannot change the sum by more. A query whose distribution is too
// flat for that, or whose scores have no bound, and one of several, whose fp32 scores cost less
// together, gets all of its scores computed in fp32. NaN if a score is NaN; infinite if the
// greatest score is.
void linear_top_k_log_sum(const Head& head, const float* hidden, int64_t count, int64_t k,
                          float* scores, int64_t* ids, float* log_sums, const Executor& executor,
                          Isa isa = best_matrix_isa());

// A query of which every score is computed.
struct DenseSum {
  const float* x;  // [depth]
  float best;      // the greatest score
  float* log_sum;
};

void dense_log_sums(const Dense& dense, std::span<const DenseSum> queries, const Executor& executor,
                    Isa isa);

}  // namespace qcompile

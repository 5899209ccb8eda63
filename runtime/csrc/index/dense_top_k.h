// One pass over the rows in fp32 for both: the k best scores, and the sum of the exponentials of
// all.
#pragma once

#include <cstdint>
#include <span>

#include "core/isa.h"
#include "core/parallel.h"
#include "index/head.h"

namespace qcompile {

// A query and where its answers go.
struct DenseAnswer {
  const float* x;  // [depth]
  float* scores;   // [k]
  int64_t* ids;    // [k]
  float* log_sum;
};

// Answers the queries: scores and ids as linear_top_k() does, and log_sum off by no more than the
// rounding of fp32 scores. answered[i] is false for those it leaves out: with a score that is no
// number or infinite, or none above minus infinity. The head has packed rows, which bound the
// norms, and fp32 ones.
void dense_top_k(const Head& head, std::span<const DenseAnswer> queries, int64_t k, char* answered,
                 const Executor& executor, Isa isa);

}  // namespace qcompile

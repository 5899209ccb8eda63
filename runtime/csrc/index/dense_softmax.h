// softmax of fp32 scores, in few passes over them.
#pragma once

#include <cstdint>
#include <span>

#include "core/isa.h"
#include "core/parallel.h"
#include "index/head.h"

namespace qcompile {

// A query and where its probabilities go.
struct SoftmaxQuery {
  const float* x;        // [depth]
  float* probabilities;  // [rows]
};

// What it writes does not depend on the number of threads.
void dense_softmax(const Dense& dense, std::span<const SoftmaxQuery> queries,
                   const Executor& executor, Isa isa);

}  // namespace qcompile

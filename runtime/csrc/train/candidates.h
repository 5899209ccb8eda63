#pragma once

#include <cstdint>
#include <vector>

#include "core/parallel.h"
#include "lsh/tables.h"
#include "train/active_set.h"

namespace qcompile {

// Appends LSH candidates to the list of each example, which holds its labels, until the list has
// options.active entries or no candidate is left. Each example probes the tables in a random order
// of its own, and each bucket from a random place on, so that no neuron is favoured for its number
// (SLIDE, MLSys 2020, section 4.1). By options.sampling candidates are:
//   kTopK       those that collide in most tables; equals in the order in which they were seen;
//   kVanilla    all that are seen; what is needed no more is not probed;
//   kThreshold  those seen options.threshold times, in the order in which they reach it; what is
//               needed no more is not probed.
// Random numbers depend on (options.seed, options.step, example) only. Notes in tables.lookups()
// what was found.
void add_candidates(const LshTables& tables, const float* hidden, const SampleOptions& options,
                    std::vector<std::vector<uint32_t>>& lists, const Executor& executor);

}  // namespace qcompile

#pragma once

#include <cstdint>
#include <vector>

#include "core/parallel.h"
#include "lsh/tables.h"
#include "train/active_set.h"

namespace qcompile {

// Appends LSH candidates to the list of each example, which holds its labels, until the list has
// options.active entries or no candidate is left. Those that collide in more tables come first
// (SLIDE's top-k sampling); equals in the order in which a random rotation of the tables shows
// them, so that no neuron is favoured for its number.
void add_candidates(const LshTables& tables, const float* hidden, const SampleOptions& options,
                    std::vector<std::vector<uint32_t>>& lists, const Executor& executor);

}  // namespace qcompile

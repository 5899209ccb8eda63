// Which neurons of a huge output layer take part in one batch.
#pragma once

#include <cstdint>
#include <vector>

#include "core/group.h"
#include "core/parallel.h"
#include "lsh/tables.h"

namespace qcompile {

struct SampleOptions {
  int64_t neurons = 0;    // N
  int64_t active = 0;     // most neurons that one example may activate on its own
  int64_t negatives = 0;  // neurons drawn uniformly for the whole batch
  uint64_t seed = 0;
  uint64_t step = 0;  // of training; each has random numbers of its own
};

// Labels [examples, width], padded with anything negative.
struct Labels {
  const int64_t* ids = nullptr;
  int64_t examples = 0;
  int64_t width = 0;
};

// Every example has neurons of its own: its labels, then the LSH candidates that collided with it
// in most tables. All examples share a uniform draw without replacement, which stands for
// everything else: each shared neuron outside A, the example's own, counts
// (N − |A|) / |shared outside A| times, so that the sum of exponentials over all N neurons is
// estimated without bias. With `active` ≥ N every neuron is shared and nothing is estimated.
struct ActiveSet {
  int64_t examples = 0;
  std::vector<uint32_t> shared;        // [S] ascending
  std::vector<uint32_t> own;           // [P] by example, its labels first
  std::vector<int64_t> own_offsets;    // [B + 1]
  std::vector<uint32_t> label_counts;  // [B] distinct labels, at least 1
  std::vector<uint32_t> example_of;    // [P]
  std::vector<int32_t> shared_place;   // [P] where in `shared` an own neuron is, or −1
  std::vector<float> correction;       // [B] logarithm of what a shared neuron counts
  Groups by_neuron;                    // positions of `own` by neuron
};

// `tables` may be null (no candidates) and must otherwise be built and match `hidden`
// [examples, dimension]. Throws std::out_of_range for a label ≥ N and std::invalid_argument for an
// example without a label. The result does not depend on the executor.
ActiveSet sample_active(const LshTables* tables, const float* hidden, const Labels& labels,
                        const SampleOptions& options, const Executor& executor);

}  // namespace qcompile

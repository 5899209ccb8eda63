// Which neurons of a huge output layer take part in one batch.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/parallel.h"
#include "lsh/tables.h"

namespace qcompile {

// kLsh: labels, LSH candidates and a uniform draw. kSampled: labels and the draw. kFull: all.
enum class Mode { kLsh, kSampled, kFull };

// Which of the neurons that collide with an example become its candidates; see candidates.h.
enum class Sampling { kTopK, kVanilla, kThreshold };

struct SampleOptions {
  Mode mode = Mode::kLsh;
  int64_t neurons = 0;    // N
  int64_t active = 0;     // most neurons that one example may activate on its own
  int64_t negatives = 0;  // neurons drawn uniformly for the whole batch
  Sampling sampling = Sampling::kTopK;
  int64_t threshold = 2;          // of Sampling::kThreshold
  bool allow_unlabelled = false;  // whether an example may have no label here
  uint64_t seed = 0;
  uint64_t step = 0;  // of training; each has random numbers of its own
};

// Labels [examples, width], padded with anything negative.
struct Labels {
  const int64_t* ids = nullptr;
  int64_t examples = 0;
  int64_t width = 0;
};

// Every example has neurons of its own, A: its labels, then its LSH candidates. All examples share
// C, the labels of the whole batch, and a uniform draw without replacement, which stands for
// everything else: each neuron drawn outside A ∪ C counts (N − |A ∪ C|) / |drawn outside A ∪ C|
// times, so that the sum of exponentials over all N neurons is estimated without bias, whatever A
// and C. C costs no rows that are not updated anyway, and takes the popular neurons, which matter
// to everybody, out of what is estimated. In Mode::kFull, and in Mode::kLsh with `active` ≥ N,
// every neuron is shared and nothing is estimated.
struct ActiveSet {
  int64_t examples = 0;
  std::vector<uint32_t> shared;        // [S] ascending
  std::vector<float> drawn;            // [S] 1 if it stands for others, 0 if it is in C
  std::vector<uint32_t> own;           // [P] by example, its labels first
  std::vector<int64_t> own_offsets;    // [B + 1]
  std::vector<uint32_t> label_counts;  // [B] distinct labels
  std::vector<uint32_t> example_of;    // [P]
  // [B] logarithm of what a drawn neuron counts, then zeros up to a multiple of kLanes.
  std::vector<float> correction;

  // The same by neuron: each that is shared or somebody's own is one row.
  std::vector<uint32_t> rows;         // [R] ascending
  std::vector<int32_t> shared_place;  // [R] where in `shared`, or −1
  std::vector<uint32_t> shared_rows;  // [S] the row of each shared neuron
  std::vector<uint32_t> row_offsets;  // [R + 1] into `pairs`
  std::vector<uint32_t> pairs;        // [P] positions of `own`, by row, ascending within a row

  int64_t row_count() const { return static_cast<int64_t>(rows.size()); }
  std::span<const uint32_t> pairs_of(int64_t row) const {
    return {pairs.data() + row_offsets[row], row_offsets[row + 1] - row_offsets[row]};
  }
};

// `tables` may be null (no candidates) and must otherwise be built and match `hidden`
// [examples, dimension]. Throws std::out_of_range for a label ≥ N and std::invalid_argument for an
// example without a label, unless that is allowed. The result does not depend on the executor.
ActiveSet sample_active(const LshTables* tables, const float* hidden, const Labels& labels,
                        const SampleOptions& options, const Executor& executor);

}  // namespace qcompile

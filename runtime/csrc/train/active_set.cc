#include "train/active_set.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

#include "core/random.h"
#include "train/candidates.h"

namespace qcompile {
namespace {

constexpr uint64_t kSharedSeed = 0x7368617265642121u;

// `count` distinct numbers below `bound`, ascending (Floyd's method).
std::vector<uint32_t> draw(int64_t count, int64_t bound, uint64_t seed, uint64_t stream) {
  std::vector<bool> taken(bound);
  std::vector<uint32_t> drawn;
  drawn.reserve(count);
  for (int64_t last = bound - count; last < bound; ++last) {
    uint64_t pick = below(random_bits(seed, stream, last), last + 1);
    if (taken[pick]) pick = last;
    taken[pick] = true;
    drawn.push_back(static_cast<uint32_t>(pick));
  }
  std::sort(drawn.begin(), drawn.end());
  return drawn;
}

std::vector<uint32_t> distinct_labels(const Labels& labels, int64_t example, int64_t neurons) {
  std::vector<uint32_t> distinct;
  for (int64_t i = 0; i < labels.width; ++i) {
    const int64_t label = labels.ids[example * labels.width + i];
    if (label < 0) continue;
    if (label >= neurons) {
      throw std::out_of_range("label " + std::to_string(label) + " of example " +
                              std::to_string(example) + " is not below " + std::to_string(neurons));
    }
    const uint32_t id = static_cast<uint32_t>(label);
    if (std::find(distinct.begin(), distinct.end(), id) == distinct.end()) distinct.push_back(id);
  }
  if (distinct.empty()) {
    throw std::invalid_argument("example " + std::to_string(example) + " has no label");
  }
  return distinct;
}

void flatten(const std::vector<std::vector<uint32_t>>& lists, ActiveSet& set) {
  set.own_offsets.assign(1, 0);
  for (const auto& list : lists) set.own_offsets.push_back(set.own_offsets.back() + list.size());
  set.own.reserve(set.own_offsets.back());
  set.example_of.reserve(set.own_offsets.back());
  for (size_t example = 0; example < lists.size(); ++example) {
    set.own.insert(set.own.end(), lists[example].begin(), lists[example].end());
    set.example_of.insert(set.example_of.end(), lists[example].size(),
                          static_cast<uint32_t>(example));
  }
}

void relate_shared(ActiveSet& set, int64_t neurons) {
  std::vector<int32_t> place(neurons, -1);
  for (size_t i = 0; i < set.shared.size(); ++i) place[set.shared[i]] = static_cast<int32_t>(i);
  set.shared_place.reserve(set.own.size());
  for (uint32_t id : set.own) set.shared_place.push_back(place[id]);
  for (int64_t e = 0; e < set.examples; ++e) {
    const int64_t own = set.own_offsets[e + 1] - set.own_offsets[e];
    int64_t outside = static_cast<int64_t>(set.shared.size());
    for (int64_t p = set.own_offsets[e]; p < set.own_offsets[e + 1]; ++p) {
      outside -= set.shared_place[p] >= 0;
    }
    const double counts = outside > 0 ? static_cast<double>(neurons - own) / outside : 1.0;
    set.correction.push_back(static_cast<float>(std::log(counts)));
  }
}

}  // namespace

ActiveSet sample_active(const LshTables* tables, const float* hidden, const Labels& labels,
                        const SampleOptions& options, const Executor& executor) {
  if (options.neurons < 1 || options.neurons > std::numeric_limits<int32_t>::max()) {
    throw std::invalid_argument("the number of neurons must be in [1, 2^31)");
  }
  const bool everything = options.active >= options.neurons;
  const int64_t shared = everything ? options.neurons : options.negatives;
  ActiveSet set;
  set.examples = labels.examples;
  set.shared = draw(std::clamp<int64_t>(shared, 0, options.neurons), options.neurons,
                    options.seed ^ kSharedSeed, options.step);
  std::vector<std::vector<uint32_t>> lists(labels.examples);
  for (int64_t e = 0; e < labels.examples; ++e) {
    lists[e] = distinct_labels(labels, e, options.neurons);
    set.label_counts.push_back(static_cast<uint32_t>(lists[e].size()));
  }
  if (tables != nullptr && !everything) {
    add_candidates(*tables, hidden, options, lists, executor);
  }
  flatten(lists, set);
  relate_shared(set, options.neurons);
  set.by_neuron = group_positions(std::span<const uint32_t>(set.own), options.neurons);
  return set;
}

}  // namespace qcompile

#include "train/active_set.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <iterator>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>

#include "core/group.h"
#include "core/lanes.h"
#include "core/random.h"
#include "train/candidates.h"

namespace qcompile {
namespace {

constexpr uint64_t kSharedSeed = 0x7368617265642121u;

// A set of numbers below 2^32 − 1 that holds at most so many.
class NumberSet {
 public:
  explicit NumberSet(int64_t most)
      : bits_(std::bit_width(static_cast<uint64_t>(most)) + 1),
        places_(size_t{1} << bits_, kFree) {}

  // Whether `number` was not in the set before.
  bool insert(uint32_t number) {
    size_t place = (number * 0x9e3779b97f4a7c15u) >> (64 - bits_);
    while (places_[place] != kFree) {
      if (places_[place] == number) return false;
      place = (place + 1) & (places_.size() - 1);
    }
    places_[place] = number;
    return true;
  }

 private:
  static constexpr uint32_t kFree = std::numeric_limits<uint32_t>::max();
  int bits_;
  std::vector<uint32_t> places_;
};

// `count` distinct numbers below `bound`, ascending (Floyd's method).
std::vector<uint32_t> draw(int64_t count, int64_t bound, uint64_t seed, uint64_t stream) {
  std::vector<uint32_t> drawn(count);
  if (count == bound) {
    std::iota(drawn.begin(), drawn.end(), 0u);
    return drawn;
  }
  NumberSet taken(count);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t last = bound - count + i;
    uint32_t pick = static_cast<uint32_t>(below(random_bits(seed, stream, last), last + 1));
    if (!taken.insert(pick)) {
      pick = static_cast<uint32_t>(last);
      taken.insert(pick);
    }
    drawn[i] = pick;
  }
  return group_positions(std::span<const uint32_t>(drawn), bound).keys;
}

// The distinct labels of one example, in the order in which they are given.
std::vector<uint32_t> distinct_labels(const Labels& labels, int64_t example,
                                      const SampleOptions& options) {
  std::vector<std::pair<uint32_t, uint32_t>> given;  // label and place
  for (int64_t i = 0; i < labels.width; ++i) {
    const int64_t label = labels.ids[example * labels.width + i];
    if (label < 0) continue;
    if (label >= options.neurons) {
      throw std::out_of_range("label " + std::to_string(label) + " of example " +
                              std::to_string(example) + " is not below " +
                              std::to_string(options.neurons));
    }
    given.emplace_back(static_cast<uint32_t>(label), static_cast<uint32_t>(given.size()));
  }
  if (given.empty() && !options.allow_unlabelled) {
    throw std::invalid_argument("example " + std::to_string(example) + " has no label");
  }
  std::ranges::sort(given);
  const auto repeated = std::ranges::unique(given, {}, &std::pair<uint32_t, uint32_t>::first);
  given.erase(repeated.begin(), repeated.end());
  std::ranges::sort(given, {}, &std::pair<uint32_t, uint32_t>::second);
  std::vector<uint32_t> distinct;
  distinct.reserve(std::max<size_t>(given.size(), options.active));
  for (const auto& [label, place] : given) distinct.push_back(label);
  return distinct;
}

// Adds the labels of all examples to the shared neurons, which hold the drawn ones.
void share_labels(const std::vector<std::vector<uint32_t>>& lists, int64_t neurons,
                  ActiveSet& set) {
  std::vector<uint32_t> labels;
  for (const auto& list : lists) labels.insert(labels.end(), list.begin(), list.end());
  labels = group_positions(std::span<const uint32_t>(labels), neurons).keys;
  std::vector<uint32_t> drawn = std::exchange(set.shared, {});
  set.shared.reserve(labels.size() + drawn.size());
  std::ranges::set_union(labels, drawn, std::back_inserter(set.shared));
  set.drawn.assign(set.shared.size(), 1.0f);
  size_t place = 0;
  for (uint32_t label : labels) {
    while (set.shared[place] != label) ++place;
    set.drawn[place] = 0.0f;
  }
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

// Merges the neurons that are somebody's own with the shared ones.
void list_rows(ActiveSet& set, int64_t neurons) {
  Groups own = group_positions(std::span<const uint32_t>(set.own), neurons);
  set.pairs = std::move(own.positions);
  const size_t most = own.keys.size() + set.shared.size();
  set.rows.reserve(most);
  set.shared_place.reserve(most);
  set.shared_rows.reserve(set.shared.size());
  set.row_offsets.reserve(most + 1);
  size_t group = 0, place = 0;
  while (group < own.keys.size() || place < set.shared.size()) {
    const bool owned = group < own.keys.size() &&
                       (place == set.shared.size() || own.keys[group] <= set.shared[place]);
    const uint32_t id = owned ? own.keys[group] : set.shared[place];
    const bool shared = place < set.shared.size() && set.shared[place] == id;
    set.rows.push_back(id);
    set.shared_place.push_back(shared ? static_cast<int32_t>(place) : -1);
    if (shared) set.shared_rows.push_back(static_cast<uint32_t>(set.rows.size() - 1));
    set.row_offsets.push_back(static_cast<uint32_t>(own.offsets[group]));
    group += owned;
    place += shared;
  }
  set.row_offsets.push_back(static_cast<uint32_t>(set.pairs.size()));
}

void weigh_drawn(ActiveSet& set, int64_t neurons) {
  int64_t drawn = 0;
  for (float one : set.drawn) drawn += one != 0.0f;
  const int64_t labels = static_cast<int64_t>(set.shared.size()) - drawn;
  std::vector<int64_t> own_labels(set.examples), own_drawn(set.examples);
  for (int64_t row = 0; row < set.row_count(); ++row) {
    const int32_t place = set.shared_place[row];
    if (place < 0) continue;
    std::vector<int64_t>& overlap = set.drawn[place] != 0.0f ? own_drawn : own_labels;
    for (uint32_t p : set.pairs_of(row)) ++overlap[set.example_of[p]];
  }
  set.correction.resize((set.examples + kLanes - 1) / kLanes * kLanes);
  for (int64_t e = 0; e < set.examples; ++e) {
    const int64_t own = set.own_offsets[e + 1] - set.own_offsets[e];
    const int64_t others = neurons - own - (labels - own_labels[e]);
    const int64_t outside = drawn - own_drawn[e];
    const double counts = outside > 0 ? static_cast<double>(others) / outside : 1.0;
    set.correction[e] = static_cast<float>(std::log(counts));
  }
}

}  // namespace

ActiveSet sample_active(const LshTables* tables, const float* hidden, const Labels& labels,
                        const SampleOptions& options, const Executor& executor) {
  if (options.neurons < 1 || options.neurons > std::numeric_limits<int32_t>::max()) {
    throw std::invalid_argument("the number of neurons must be in [1, 2^31)");
  }
  const bool everything = options.mode == Mode::kFull ||
                          (options.mode == Mode::kLsh && options.active >= options.neurons);
  const int64_t shared = everything ? options.neurons : options.negatives;
  ActiveSet set;
  set.examples = labels.examples;
  set.shared = draw(std::clamp<int64_t>(shared, 0, options.neurons), options.neurons,
                    options.seed ^ kSharedSeed, options.step);
  std::vector<std::vector<uint32_t>> lists(labels.examples);
  for (int64_t e = 0; e < labels.examples; ++e) {
    lists[e] = distinct_labels(labels, e, options);
    set.label_counts.push_back(static_cast<uint32_t>(lists[e].size()));
  }
  set.drawn.assign(set.shared.size(), 1.0f);
  if (!everything) share_labels(lists, options.neurons, set);
  if (tables != nullptr && !everything && options.mode == Mode::kLsh) {
    add_candidates(*tables, hidden, options, lists, executor);
  }
  flatten(lists, set);
  list_rows(set, options.neurons);
  weigh_drawn(set, options.neurons);
  return set;
}

}  // namespace qcompile

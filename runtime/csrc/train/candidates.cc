#include "train/candidates.h"

#include <algorithm>
#include <array>
#include <numeric>

#include "core/random.h"

namespace qcompile {
namespace {

constexpr uint64_t kOrderSeed = 0x726f746174696f6eu;
constexpr int64_t kExampleGrain = 8;
constexpr uint16_t kListed = 0x8000;  // beyond any number of tables
// Buckets are all over memory: the next ones are asked for while one is read.
constexpr int64_t kPlaceAhead = 8, kRowsAhead = 4;

using List = std::vector<uint32_t>;

// The buckets of one example, in the random order in which they are probed.
class Probe {
 public:
  Probe(const LshTables& tables, const uint32_t* keys, int64_t stride, uint64_t bits)
      : tables_(tables),
        keys_(keys),
        stride_(stride),
        bits_(bits),
        count_(tables.options().tables) {
    std::iota(order_.begin(), order_.begin() + count_, uint16_t{0});
    for (int64_t i = 0; i < count_; ++i) {
      std::swap(order_[i], order_[i + below(random_bits(bits, 0, i), count_ - i)]);
    }
  }

  // Calls visit(row) for the rows of all buckets until it returns false; returns how many calls.
  template <typename Visit>
  int64_t each(Visit visit) const {
    int64_t calls = 0;
    for (int64_t i = 0; i < count_; ++i) {
      if (i + kPlaceAhead < count_) table(i + kPlaceAhead).prefetch_place(key(i + kPlaceAhead));
      if (i + kRowsAhead < count_) table(i + kRowsAhead).prefetch_rows(key(i + kRowsAhead));
      const std::span<const uint32_t> bucket = table(i).bucket(key(i));
      if (bucket.empty()) continue;
      const size_t first = below(random_bits(bits_, 1, i), bucket.size());
      for (auto part : {bucket.subspan(first), bucket.first(first)}) {
        for (uint32_t row : part) {
          ++calls;
          if (!visit(row)) return calls;
        }
      }
    }
    return calls;
  }

 private:
  const BucketTable& table(int64_t i) const { return tables_.table(order_[i]); }
  uint32_t key(int64_t i) const { return keys_[order_[i] * stride_]; }

  const LshTables& tables_;
  const uint32_t* keys_;
  int64_t stride_;
  uint64_t bits_;
  int64_t count_;
  std::array<uint16_t, LshTables::kMaxTables> order_;
};

// Returns how many entries of buckets were read.
int64_t sample(const Probe& probe, const SampleOptions& options, int64_t tables, size_t room,
               CollisionCounts& memory, List& list) {
  const auto see = [&](uint32_t row) {
    uint16_t& count = memory.counts[row];
    if (count == 0) memory.seen.push_back(row);
    return ++count;
  };
  switch (options.sampling) {
    case Sampling::kTopK: {
      const int64_t read = probe.each([&](uint32_t row) { return see(row), true; });
      memory.take_most_frequent(tables, room, list);
      return read;
    }
    case Sampling::kVanilla:
      return probe.each([&](uint32_t row) {
        if (see(row) == 1) list.push_back(row), --room;
        return room > 0;
      });
    case Sampling::kThreshold:
      break;
  }
  return probe.each([&](uint32_t row) {
    if (see(row) == options.threshold) list.push_back(row), --room;
    return room > 0;
  });
}

LookupStatistics summarise(const std::vector<List>& lists, const std::vector<int64_t>& read,
                           int64_t labels) {
  LookupStatistics sum;
  sum.examples = static_cast<int64_t>(lists.size());
  for (size_t e = 0; e < lists.size(); ++e) {
    const int64_t active = static_cast<int64_t>(lists[e].size());
    sum.least = e == 0 ? active : std::min(sum.least, active);
    sum.most = std::max(sum.most, active);
    sum.active += active;
    sum.collisions += read[e];
  }
  sum.candidates = sum.active - labels;
  return sum;
}

}  // namespace

void add_candidates(const LshTables& tables, const float* hidden, const SampleOptions& options,
                    std::vector<std::vector<uint32_t>>& lists, const Executor& executor) {
  const int64_t examples = static_cast<int64_t>(lists.size());
  const int64_t count = tables.options().tables;
  const std::vector<uint32_t> keys = tables.keys(hidden, examples, executor);
  std::vector<int64_t> read(examples);
  int64_t labels = 0;
  for (const List& list : lists) labels += static_cast<int64_t>(list.size());
  parallel_for(executor, examples, kExampleGrain, [&](int64_t begin, int64_t end) {
    auto memory = tables.lookups().take(tables.options().rows);
    for (int64_t e = begin; e < end; ++e) {
      List& list = lists[e];
      const size_t given = list.size();
      if (static_cast<int64_t>(given) >= options.active) continue;
      for (uint32_t row : list) memory->counts[row] = kListed;
      const Probe probe(tables, keys.data() + e, examples,
                        random_bits(options.seed ^ kOrderSeed, options.step, e));
      read[e] = sample(probe, options, count, options.active - given, *memory, list);
      for (size_t i = 0; i < given; ++i) memory->counts[list[i]] = 0;
      memory->clear();
    }
    tables.lookups().give(std::move(memory));
  });
  tables.lookups().record(summarise(lists, read, labels));
}

}  // namespace qcompile

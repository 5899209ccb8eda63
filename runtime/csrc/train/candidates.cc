#include "train/candidates.h"

#include <algorithm>

#include "core/random.h"

namespace qcompile {
namespace {

constexpr uint64_t kRotationSeed = 0x726f746174696f6eu;

// Counts collisions of one example at a time; all counters are zero between examples.
class CollisionCounter {
 public:
  CollisionCounter(int64_t neurons, int64_t tables) : counts_(neurons), at_(tables + 1) {}

  void add(std::span<const uint32_t> bucket) {
    for (uint32_t id : bucket) {
      if (counts_[id]++ == 0) seen_.push_back(id);
    }
  }

  // Appends to `list`, up to `most` entries, what was seen and is not in it yet.
  void take(std::vector<uint32_t>& list, size_t most) {
    for (uint32_t id : list) counts_[id] = 0;
    std::fill(at_.begin(), at_.end(), 0);
    for (uint32_t id : seen_) ++at_[counts_[id]];
    // The smallest count that still fits whole; of the count below it the first ones fit.
    size_t room = most > list.size() ? most - list.size() : 0;
    size_t least = at_.size();
    while (least > 1 && at_[least - 1] <= room) room -= at_[--least];
    for (uint32_t id : seen_) {
      const size_t count = counts_[id];
      counts_[id] = 0;
      if (count >= least) {
        list.push_back(id);
      } else if (count + 1 == least && count > 0 && room > 0) {
        list.push_back(id);
        --room;
      }
    }
    seen_.clear();
  }

 private:
  std::vector<uint16_t> counts_;  // [neurons]
  std::vector<size_t> at_;        // [tables + 1] how many were seen that often
  std::vector<uint32_t> seen_;
};

}  // namespace

void add_candidates(const LshTables& tables, const float* hidden, const SampleOptions& options,
                    std::vector<std::vector<uint32_t>>& lists, const Executor& executor) {
  const int64_t examples = static_cast<int64_t>(lists.size());
  const int64_t count = tables.options().tables;
  const std::vector<uint32_t> keys = tables.keys(hidden, examples, executor);
  parallel_for(executor, examples, 16, [&](int64_t begin, int64_t end) {
    CollisionCounter counter(options.neurons, count);
    for (int64_t e = begin; e < end; ++e) {
      const uint64_t bits = random_bits(options.seed ^ kRotationSeed, options.step, e);
      const int64_t first = static_cast<int64_t>(below(bits, count));
      for (int64_t i = 0; i < count; ++i) {
        const int64_t table = (first + i) % count;
        counter.add(tables.bucket(table, keys[table * examples + e]));
      }
      counter.take(lists[e], options.active);
    }
  });
}

}  // namespace qcompile

// What lookups of candidates keep between calls: memory, and what the last one found.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

namespace qcompile {

// One thread's memory for counting how often each row of the tables collides with a query.
struct CollisionCounts {
  std::vector<uint16_t> counts;  // [rows], all zero between queries
  std::vector<uint32_t> seen;
  std::vector<size_t> at;

  // Appends the `room` rows that were seen most often to `list`, the first seen of equals; none was
  // seen more than `most` times.
  void take_most_frequent(int64_t most, size_t room, std::vector<uint32_t>& list) {
    at.assign(most + 1, 0);  // how many rows were seen that often
    for (uint32_t row : seen) ++at[counts[row]];
    // The smallest count that still fits whole; of the count below it the first ones fit.
    size_t least = at.size();
    while (least > 1 && at[least - 1] <= room) room -= at[--least];
    for (uint32_t row : seen) {
      const size_t count = counts[row];
      if (count >= least) {
        list.push_back(row);
      } else if (count + 1 == least && room > 0) {
        list.push_back(row);
        --room;
      }
    }
  }
  // Forgets what was seen.
  void clear() {
    for (uint32_t row : seen) counts[row] = 0;
    seen.clear();
  }
};

struct LookupStatistics {
  int64_t examples = 0;
  int64_t collisions = 0;  // entries of buckets that were read
  int64_t candidates = 0;  // rows that were taken, labels not among them
  int64_t least = 0;       // active rows of one example, its labels among them
  int64_t most = 0;
  int64_t active = 0;  // the same of all examples
};

// Thread-safe.
class Lookups {
 public:
  std::unique_ptr<CollisionCounts> take(int64_t rows) {
    const std::lock_guard lock(mutex_);
    if (free_.empty()) {
      auto fresh = std::make_unique<CollisionCounts>();
      fresh->counts.resize(rows);
      bytes_ += rows * static_cast<int64_t>(sizeof(uint16_t));
      return fresh;
    }
    auto taken = std::move(free_.back());
    free_.pop_back();
    return taken;
  }
  // Counts must be zero again; what an exception left otherwise is dropped by not coming here.
  void give(std::unique_ptr<CollisionCounts> counts) {
    const std::lock_guard lock(mutex_);
    free_.push_back(std::move(counts));
  }
  void record(const LookupStatistics& statistics) {
    const std::lock_guard lock(mutex_);
    last_ = statistics;
  }
  LookupStatistics last() const {
    const std::lock_guard lock(mutex_);
    return last_;
  }
  int64_t bytes() const {
    const std::lock_guard lock(mutex_);
    return bytes_;
  }

 private:
  mutable std::mutex mutex_;
  std::vector<std::unique_ptr<CollisionCounts>> free_;
  LookupStatistics last_;
  int64_t bytes_ = 0;
};

}  // namespace qcompile

// One hash table: the rows of every bucket, one bucket after another.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace qcompile {

// What a full bucket does with one more row: drop its oldest, or keep a uniform sample of all.
enum class Policy { kFifo, kReservoir };

struct BucketRules {
  int64_t capacity = 0;
  Policy policy = Policy::kReservoir;
  uint64_t seed = 0;
  uint64_t stream = 0;  // tells the random numbers of one filling from those of another
};

class BucketTable {
 public:
  // Where a bucket begins and how many rows it has seen: side by side, for one cache miss a row.
  struct Slot {
    uint32_t begin = 0;
    uint32_t seen = 0;
  };
  using Slots = std::vector<Slot>;

  // Puts row i into bucket keys[i] < 2^key_bits, for all rows in order, forgetting what was there.
  // Key: uint16_t or uint32_t. `slots` is memory to be used again.
  template <typename Key>
  void fill(std::span<const Key> keys, int key_bits, const BucketRules& rules, Slots& slots);

  bool filled() const { return !offsets_.empty(); }
  int64_t buckets() const { return static_cast<int64_t>(offsets_.size()) - 1; }
  int64_t rows() const { return static_cast<int64_t>(rows_.size()); }
  int64_t bytes() const {
    return static_cast<int64_t>(sizeof(uint32_t) * (offsets_.capacity() + rows_.capacity()));
  }

  // Requires filled() and key < buckets().
  std::span<const uint32_t> bucket(uint32_t key) const {
    return {rows_.data() + offsets_[key], offsets_[key + 1] - offsets_[key]};
  }
  // Asks for where bucket() will look, and later for what it will find.
  void prefetch_place(uint32_t key) const { __builtin_prefetch(offsets_.data() + key); }
  void prefetch_rows(uint32_t key) const {
    constexpr int64_t kLine = 64 / sizeof(uint32_t);
    for (uint32_t at = offsets_[key]; at < offsets_[key + 1]; at += kLine) {
      __builtin_prefetch(rows_.data() + at);
    }
  }

 private:
  std::vector<uint32_t> offsets_;  // [buckets + 1]
  std::vector<uint32_t> rows_;
};

}  // namespace qcompile

#include "lsh/buckets.h"

#include <algorithm>

#include "core/random.h"

namespace qcompile {
namespace {

constexpr uint64_t kReservoirSeed = 0x7265736572766f69u;

// Rows between asking for memory and using it: a row's slot first, then its place in the bucket.
constexpr uint32_t kSlotAhead = 64, kPlaceAhead = 32;

}  // namespace

template <typename Key>
void BucketTable::fill(std::span<const Key> keys, int key_bits, const BucketRules& rules,
                       Slots& slots) {
  const int64_t buckets = int64_t{1} << key_bits;
  const uint32_t capacity = static_cast<uint32_t>(rules.capacity);
  slots.assign(buckets, {});
  for (Key key : keys) ++slots[key].seen;
  offsets_.resize(buckets + 1);
  uint32_t total = 0;
  for (int64_t b = 0; b < buckets; ++b) {
    offsets_[b] = total;
    total += std::min(slots[b].seen, capacity);
    slots[b] = {offsets_[b], 0};
  }
  offsets_[buckets] = total;
  if (total > rows_.capacity()) {
    rows_ = {};  // nothing in it is wanted; and no more than a little beyond what is needed
    rows_.reserve(std::min<size_t>(keys.size(), total + total / 16));
  }
  rows_.resize(total);
  const uint64_t seed = rules.seed ^ kReservoirSeed;
  const uint32_t count = static_cast<uint32_t>(keys.size());
  for (uint32_t row = 0; row < count; ++row) {
    if (row + kSlotAhead < count) {
      __builtin_prefetch(&slots[keys[row + kSlotAhead]], 1);
      const Slot& near = slots[keys[row + kPlaceAhead]];
      __builtin_prefetch(rows_.data() + near.begin + std::min(near.seen, capacity - 1), 1);
    }
    Slot& slot = slots[keys[row]];
    const uint32_t before = slot.seen++;
    uint64_t place = before;
    if (before >= capacity) {
      // Item number n = before + 1 enters a reservoir with probability capacity / n (Vitter, 1985).
      place = rules.policy == Policy::kFifo
                  ? before % capacity
                  : below(random_bits(seed, rules.stream, row), uint64_t{before} + 1);
      if (place >= capacity) continue;
    }
    rows_[slot.begin + place] = row;
  }
}

template void BucketTable::fill(std::span<const uint16_t>, int, const BucketRules&, Slots&);
template void BucketTable::fill(std::span<const uint32_t>, int, const BucketRules&, Slots&);

}  // namespace qcompile

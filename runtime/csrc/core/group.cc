#include "core/group.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>

namespace qcompile {
namespace {

constexpr int kDigitBits = 11;
constexpr size_t kDigits = size_t{1} << kDigitBits;

// One pass of a radix sort; keeps the order of equal digits.
void sort_by_digit(const std::vector<uint64_t>& from, std::vector<uint64_t>& to, int shift) {
  uint32_t next[kDigits] = {};
  for (uint64_t entry : from) ++next[entry >> shift & (kDigits - 1)];
  uint32_t total = 0;
  for (uint32_t& place : next) total += std::exchange(place, total);
  for (uint64_t entry : from) to[next[entry >> shift & (kDigits - 1)]++] = entry;
}

}  // namespace

template <typename Key>
Groups group_positions(std::span<const Key> keys, int64_t bound) {
  if (keys.size() > std::numeric_limits<uint32_t>::max()) {
    throw std::length_error("more than 2^32 - 1 entries in one batch");
  }
  // A key above its position, so that sorting by the key alone carries the position along.
  std::vector<uint64_t> entries(keys.size());
  uint64_t greatest = 0;
  for (size_t i = 0; i < keys.size(); ++i) {
    const int64_t row = static_cast<int64_t>(keys[i]);
    if (row < 0 || row >= bound) {
      throw std::out_of_range("row " + std::to_string(row) + " is not below " +
                              std::to_string(bound));
    }
    greatest = std::max(greatest, static_cast<uint64_t>(row));
    entries[i] = static_cast<uint64_t>(row) << 32 | i;
  }
  std::vector<uint64_t> sorted(keys.size());
  for (int bit = 0; bit < static_cast<int>(std::bit_width(greatest)); bit += kDigitBits) {
    sort_by_digit(entries, sorted, 32 + bit);
    entries.swap(sorted);
  }
  Groups groups;
  groups.positions.resize(keys.size());
  for (size_t i = 0; i < keys.size(); ++i) {
    const uint32_t key = static_cast<uint32_t>(entries[i] >> 32);
    if (groups.keys.empty() || groups.keys.back() != key) {
      groups.keys.push_back(key);
      groups.offsets.push_back(static_cast<int64_t>(i));
    }
    groups.positions[i] = static_cast<uint32_t>(entries[i]);
  }
  groups.offsets.push_back(static_cast<int64_t>(keys.size()));
  return groups;
}

template Groups group_positions(std::span<const uint32_t>, int64_t);
template Groups group_positions(std::span<const int64_t>, int64_t);

}  // namespace qcompile

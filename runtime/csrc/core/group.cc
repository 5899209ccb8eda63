#include "core/group.h"

#include <limits>
#include <stdexcept>
#include <string>

namespace qcompile {

template <typename Key>
Groups group_positions(std::span<const Key> keys, int64_t bound) {
  if (keys.size() > std::numeric_limits<uint32_t>::max()) {
    throw std::length_error("more than 2^32 - 1 entries in one batch");
  }
  std::vector<uint32_t> next(bound);
  for (Key key : keys) {
    const int64_t row = static_cast<int64_t>(key);
    if (row < 0 || row >= bound) {
      throw std::out_of_range("row " + std::to_string(row) + " is not below " +
                              std::to_string(bound));
    }
    ++next[row];
  }
  Groups groups;
  groups.offsets.push_back(0);
  uint32_t total = 0;
  for (int64_t row = 0; row < bound; ++row) {
    const uint32_t count = next[row];
    next[row] = total;
    if (count == 0) continue;
    total += count;
    groups.keys.push_back(static_cast<uint32_t>(row));
    groups.offsets.push_back(total);
  }
  groups.positions.resize(keys.size());
  for (size_t i = 0; i < keys.size(); ++i) {
    groups.positions[next[static_cast<int64_t>(keys[i])]++] = static_cast<uint32_t>(i);
  }
  return groups;
}

template Groups group_positions(std::span<const uint32_t>, int64_t);
template Groups group_positions(std::span<const int64_t>, int64_t);

}  // namespace qcompile

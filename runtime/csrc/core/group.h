// Positions of equal keys brought together.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace qcompile {

struct Groups {
  std::vector<uint32_t> keys;       // [G] those that occur, ascending
  std::vector<int64_t> offsets;     // [G + 1] into positions
  std::vector<uint32_t> positions;  // [n] by key, ascending within a key

  int64_t size() const { return static_cast<int64_t>(keys.size()); }
  std::span<const uint32_t> members(int64_t group) const {
    return {positions.data() + offsets[group],
            static_cast<size_t>(offsets[group + 1] - offsets[group])};
  }
};

// Groups keys, all below `bound` <= 2^32, by a radix sort: neither its time nor its memory depend
// on `bound`. Throws std::out_of_range for a key that is not below `bound`.
template <typename Key>
Groups group_positions(std::span<const Key> keys, int64_t bound);

}  // namespace qcompile

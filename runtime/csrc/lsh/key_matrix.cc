#include "lsh/key_matrix.h"

#include <algorithm>

#include "core/lanes.h"

namespace qcompile {

void KeyMatrix::allocate(int64_t tables, int64_t rows, int key_bits) {
  release();
  tables_ = tables;
  rows_ = rows;
  key_bits_ = key_bits;
  width_ = width_for(key_bits);
  data_.reset(new std::byte[tables * rows * width_]);
}

void KeyMatrix::release() { data_.reset(); }

template <typename Key>
void KeyMatrix::store_as(const uint32_t* from, int64_t tables, const int64_t* ids, int64_t count) {
  const bool neighbours = ids[count - 1] - ids[0] == count - 1;  // ids ascend
  for (int64_t table = 0; table < tables; ++table, from += kLanes) {
    Key* own = keys<Key>(table);
    if (neighbours) {
      std::copy(from, from + count, own + ids[0]);
    } else {
      for (int64_t lane = 0; lane < count; ++lane) own[ids[lane]] = static_cast<Key>(from[lane]);
    }
  }
}

void KeyMatrix::store(const uint32_t* keys, int64_t tables, const int64_t* ids, int64_t count) {
  if (width_ == sizeof(uint16_t)) return store_as<uint16_t>(keys, tables, ids, count);
  store_as<uint32_t>(keys, tables, ids, count);
}

void KeyMatrix::fill(BucketTable& table, int64_t of, const BucketRules& rules,
                     BucketTable::Slots& slots) const {
  const size_t count = static_cast<size_t>(rows_);
  if (width_ == sizeof(uint16_t)) {
    return table.fill(std::span<const uint16_t>(keys<uint16_t>(of), count), key_bits_, rules,
                      slots);
  }
  table.fill(std::span<const uint32_t>(keys<uint32_t>(of), count), key_bits_, rules, slots);
}

}  // namespace qcompile

// The keys of many rows in several tables, kept until the tables are filled or for longer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "lsh/buckets.h"

namespace qcompile {

// Keys take two bytes each where they fit, else four.
class KeyMatrix {
 public:
  // Room for [tables, rows] keys below 2^key_bits, their values open; keeps nothing.
  void allocate(int64_t tables, int64_t rows, int key_bits);
  void release();

  bool allocated() const { return data_ != nullptr; }
  int64_t bytes() const { return allocated() ? tables_ * rows_ * width_ : 0; }
  static int64_t bytes_for(int64_t tables, int64_t rows, int key_bits) {
    return tables * rows * width_for(key_bits);
  }

  // Takes keys [tables, kLanes] of the first tables, of which the first `count` lanes, more than
  // none, belong to rows `ids`, ascending. Distinct rows may be stored at once.
  void store(const uint32_t* keys, int64_t tables, const int64_t* ids, int64_t count);

  // Fills a hash table with all rows, by the keys of one table.
  void fill(BucketTable& table, int64_t of, const BucketRules& rules,
            BucketTable::Slots& slots) const;

 private:
  static int64_t width_for(int key_bits) {
    return key_bits <= 16 ? sizeof(uint16_t) : sizeof(uint32_t);
  }
  template <typename Key>
  Key* keys(int64_t table) const {
    return reinterpret_cast<Key*>(data_.get()) + table * rows_;
  }
  template <typename Key>
  void store_as(const uint32_t* from, int64_t tables, const int64_t* ids, int64_t count);

  int64_t tables_ = 0, rows_ = 0, width_ = 0;
  int key_bits_ = 0;
  std::unique_ptr<std::byte[]> data_;
};

}  // namespace qcompile

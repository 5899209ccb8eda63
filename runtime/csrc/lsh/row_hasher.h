// From rows to the keys of their buckets, one key a table.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/isa.h"
#include "core/random.h"
#include "lsh/family.h"
#include "train/storage.h"

namespace qcompile {

// Which hash functions: a table's key packs the codes of `hashes` of them.
struct HashOptions {
  FamilyName family = FamilyName::kDwta;
  int64_t dimension = 0;
  int64_t rows = 0;    // of the tables; bounds the bits of a key
  int64_t tables = 0;  // L
  int64_t hashes = 0;  // K
};

// A key of more bits than a table is worth is folded by a hash, so that the buckets of a table are
// at most about four times its rows, and never more than 2^kMaxKeyBits.
class RowHasher {
 public:
  static constexpr int kMaxKeyBits = 20;

  // The memory of one thread.
  struct Workspace {
    std::vector<float> rows;     // [kLanes, dimension] converted from another type
    std::vector<float> columns;  // [dimension, kLanes]
    std::vector<int32_t> codes;  // [tables · hashes, kLanes]
  };

  RowHasher(const HashOptions& options, uint64_t seed);

  int key_bits() const { return key_bits_; }
  int code_bits() const { return family_->bits(); }
  bool folds() const { return folds_; }
  // The key of a table's codes, packed with the first in the highest bits.
  uint32_t key(uint64_t codes) const {
    return static_cast<uint32_t>(folds_ ? mix_bits(codes) >> (64 - key_bits_) : codes);
  }
  bool indivisible() const { return family_->indivisible(); }

  // keys [end - begin, kLanes] of tables begin … end for rows ids[0 … count), 0 < count <= kLanes;
  // lanes beyond `count` repeat the last row.
  void keys(const RowsView& rows, const int64_t* ids, int64_t count, int64_t begin, int64_t end,
            uint32_t* keys, Workspace& workspace, Isa isa) const;

  // Codes of all functions, with those that come second, for rows ids[0 … count).
  void rank(const RowsView& rows, const int64_t* ids, int64_t count, const RankedCodes& ranked,
            Workspace& workspace, Isa isa) const;

 private:
  void transpose(const RowsView& rows, const int64_t* ids, int64_t count, Workspace& workspace,
                 Isa isa) const;

  HashOptions options_;
  int key_bits_;
  bool folds_;
  std::unique_ptr<const HashFamily> family_;
};

}  // namespace qcompile

// Which rows of a matrix have changed since they were last looked at.
#pragma once

#include <cstdint>
#include <vector>

#include "core/isa.h"
#include "train/storage.h"

namespace qcompile {

// Remembers 64 bits of each row, a hash of its bytes. A change goes unseen with a probability of
// about 2^-64. Reading every row costs a fraction of hashing it into tables, and needs nobody who
// tells what was written: whatever changed a weight, it is seen.
class Fingerprints {
 public:
  void reset(int64_t rows) {
    bits_.assign(rows, 0);
    forget();
  }
  // From now on all rows count as changed, until complete() says that all were looked at since.
  void forget() { known_ = false; }
  void complete() { known_ = true; }
  int64_t rows() const { return static_cast<int64_t>(bits_.size()); }
  int64_t bytes() const { return static_cast<int64_t>(bits_.capacity() * sizeof(uint64_t)); }

  // Whether a row has changed; remembers it as it is. Distinct rows may be looked at at once.
  bool changed(const RowsView& rows, int64_t row, Isa isa);

 private:
  std::vector<uint64_t> bits_;
  bool known_ = false;
};

}  // namespace qcompile

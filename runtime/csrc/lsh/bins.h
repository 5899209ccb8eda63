// Bins of coordinates, and which place of a bin has the largest value: what WTA, DWTA and DOPH
// share.
#pragma once

#include <cstdint>
#include <vector>

#include "core/isa.h"

namespace qcompile {

constexpr int kBin = 8;
constexpr int kBinBits = 3;  // the exact logarithm of kBin

// What functions say of kLanes rows, [functions, kLanes] each: the code, the code that comes
// second, and by how much the first leads, 0 to infinity. A lead counts within one row only.
struct RankedCodes {
  int32_t* codes;
  int32_t* seconds;
  float* leads;
};

// Bins of min(kBin, dimension) distinct coordinates. Where that is fewer than kBin, the first one
// is repeated, which never changes the winner.
class Bins {
 public:
  // The first coordinates of a permutation per bin.
  static Bins independent(int64_t dimension, int64_t count, uint64_t seed);
  // Whole permutations, each cut into as many bins as it fills.
  static Bins consecutive(int64_t dimension, int64_t count, uint64_t seed);

  int64_t count() const { return static_cast<int64_t>(starts_.size()) / kBin; }

  // codes [end - begin, kLanes]: the place of the largest value of bins begin … end, the first of
  // equals, for each of the rows in columns [dimension, kLanes].
  void winners(const float* columns, int64_t begin, int64_t end, int32_t* codes, Isa isa) const;

  // The winners of all bins with the places of the values that come second, the first of equals. A
  // lead is the difference of the values.
  void rank(const float* columns, const RankedCodes& ranked, Isa isa) const;

  // empty [count()]: one bit per row whose bin has zeros only.
  void find_empty(const float* columns, uint32_t* empty, Isa isa) const;

 private:
  void add(const uint32_t* coordinates, int64_t width);

  std::vector<uint32_t> starts_;  // [count, kBin] where the coordinate's column starts
};

// Whether any of columns [dimension, kLanes] is zero.
bool any_zero(const float* columns, int64_t dimension, Isa isa);

// Winners where an empty bin borrows the code of another bin: the first that is not empty among
// kProbes, found by hashing (Shrivastava, ICML 2017); failing that its code is 0.
class Densifier {
 public:
  static constexpr int kProbes = 64;

  explicit Densifier(uint64_t seed) : seed_(seed) {}

  void winners(const Bins& bins, const float* columns, int64_t begin, int64_t end, int32_t* codes,
               Isa isa) const;

  // The same as Bins::rank, but that an empty bin borrows the second code and the lead, too.
  void rank(const Bins& bins, const float* columns, const RankedCodes& ranked, Isa isa) const;

 private:
  // Calls serve(lender, lanes) for bins that lend to some of the rows in `lanes`.
  template <typename Serve>
  void borrow(int64_t bin, const uint32_t* empty, int64_t bins, uint32_t lanes, Serve serve) const;

  uint64_t seed_;
};

}  // namespace qcompile

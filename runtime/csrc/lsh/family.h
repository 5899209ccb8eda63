// Families of locality-sensitive hash functions: near vectors collide more often than far ones.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/isa.h"
#include "core/lanes.h"

namespace qcompile {

// Hashes kLanes rows at once. A code is below 2^bits().
class HashFamily {
 public:
  HashFamily(int64_t dimension, int64_t functions) : dimension_(dimension), functions_(functions) {}
  virtual ~HashFamily() = default;

  int64_t dimension() const { return dimension_; }
  int64_t functions() const { return functions_; }
  virtual int bits() const = 0;

  // columns [dimension, kLanes]: kLanes rows, transposed. codes [functions, kLanes].
  virtual void codes(const float* columns, int32_t* codes, Isa isa) const = 0;

 private:
  int64_t dimension_;
  int64_t functions_;
};

// Signed random projections (Charikar, STOC 2002), each over ceil(d/3) coordinates with sign ±1
// (SLIDE, MLSys 2020, appendix A). A code is one bit: whether the sum is positive. Two vectors at
// angle θ agree with a probability near 1 − θ/π.
class SimHash final : public HashFamily {
 public:
  SimHash(int64_t dimension, int64_t functions, uint64_t seed);
  int bits() const override { return 1; }
  void codes(const float* columns, int32_t* codes, Isa isa) const override;

 private:
  int64_t terms_;                      // coordinates of one function
  std::vector<uint32_t> coordinates_;  // [functions, terms]
  std::vector<float> signs_;           // [functions, terms] of ±1
};

// Densified winner-takes-all (Chen and Shrivastava, UAI 2018). Random permutations of the
// coordinates, one after another, are cut into bins of eight; a code is the place of the largest
// value in its bin, the first of equals. A bin of zeros borrows the code of another bin, found by
// hashing, after at most kProbes attempts; failing that its code is 0.
class Dwta final : public HashFamily {
 public:
  static constexpr int kBin = 8;
  static constexpr int kBits = 3;  // the exact logarithm of kBin
  static constexpr int kProbes = 64;

  Dwta(int64_t dimension, int64_t functions, uint64_t seed);
  int bits() const override { return kBits; }
  void codes(const float* columns, int32_t* codes, Isa isa) const override;

 private:
  void fill_empty(const std::vector<uint32_t>& empty, int32_t* codes) const;

  uint64_t seed_;
  std::vector<uint32_t> coordinates_;  // [functions, kBin]
};

enum class FamilyName { kSimHash, kDwta };

std::unique_ptr<HashFamily> make_family(FamilyName name, int64_t dimension, int64_t functions,
                                        uint64_t seed);

}  // namespace qcompile

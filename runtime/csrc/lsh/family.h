// Families of locality-sensitive hash functions: near vectors collide more often than far ones.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "core/isa.h"
#include "lsh/bins.h"

namespace qcompile {

// Hashes kLanes rows at once. A code is below 2^bits(). Values that are no numbers get some code
// below that limit; nothing is promised about which.
class HashFamily {
 public:
  HashFamily(int64_t dimension, int64_t functions) : dimension_(dimension), functions_(functions) {}
  virtual ~HashFamily() = default;

  int64_t dimension() const { return dimension_; }
  int64_t functions() const { return functions_; }
  virtual int bits() const = 0;
  // Whether codes of a few functions cost as much as those of all.
  virtual bool indivisible() const { return false; }

  // Codes of functions begin … end, as [end - begin, kLanes], of kLanes rows, transposed: columns
  // [dimension, kLanes]. The same for every instruction set and however functions are grouped.
  virtual void codes(const float* columns, int64_t begin, int64_t end, int32_t* codes,
                     Isa isa) const = 0;

  // The same codes of all functions, with those that come second.
  virtual void rank(const float* columns, const RankedCodes& ranked, Isa isa) const = 0;

 private:
  int64_t dimension_;
  int64_t functions_;
};

// Signed random projections (Charikar, STOC 2002), each over ceil(d/3) coordinates with sign ±1
// (SLIDE, MLSys 2020, appendix A). A code is one bit: whether the sum is positive. Two vectors at
// angle θ agree with a probability near 1 − θ/π.
class SimHash final : public HashFamily {
 public:
  static constexpr int kBits = 1;

  SimHash(int64_t dimension, int64_t functions, uint64_t seed);
  int bits() const override { return kBits; }
  void codes(const float* columns, int64_t begin, int64_t end, int32_t* codes,
             Isa isa) const override;
  void rank(const float* columns, const RankedCodes& ranked, Isa isa) const override;

 private:
  int64_t terms_;                    // coordinates of one function
  std::vector<uint32_t> starts_;     // [functions, terms] of columns; first those that are added
  std::vector<uint32_t> additions_;  // [functions] how many of them
};

// Winner takes all (Yagnik, Strelow, Ross and Lin, ICCV 2011), for dense vectors. Each function
// permutes the coordinates afresh; its code is the place of the largest of the first eight, the
// first of equals. Depends on the order of the values only.
class Wta final : public HashFamily {
 public:
  Wta(int64_t dimension, int64_t functions, uint64_t seed);
  int bits() const override { return kBinBits; }
  void codes(const float* columns, int64_t begin, int64_t end, int32_t* codes,
             Isa isa) const override;
  void rank(const float* columns, const RankedCodes& ranked, Isa isa) const override;

 private:
  Bins bins_;
};

// Densified winner takes all (Chen and Shrivastava, UAI 2018), for vectors with zeros. One
// permutation serves several functions: it is cut into bins of eight, and a code is the place of
// the largest value of its bin. A bin of zeros borrows the code of another, see Densifier.
class Dwta final : public HashFamily {
 public:
  Dwta(int64_t dimension, int64_t functions, uint64_t seed);
  int bits() const override { return kBinBits; }
  void codes(const float* columns, int64_t begin, int64_t end, int32_t* codes,
             Isa isa) const override;
  void rank(const float* columns, const RankedCodes& ranked, Isa isa) const override;

 private:
  Bins bins_;
  Densifier densifier_;
};

// Densified one-permutation hashing (Shrivastava and Li, ICML 2014), a min-hash, of the set of the
// coordinates with the largest values: a permutation is cut into bins of eight, a code is the first
// place of its bin that is in the set, and a bin that misses the set borrows, see Densifier. The
// set has the values that are not below the top_values(d)-th largest, and no zeros. Two vectors
// agree with a probability that grows with the Jaccard similarity of their sets.
class Doph final : public HashFamily {
 public:
  // A quarter of the coordinates: SLIDE takes 30 of 128, which leaves one bin in ten empty.
  static int64_t top_values(int64_t dimension) { return (dimension + 3) / 4; }

  Doph(int64_t dimension, int64_t functions, uint64_t seed);
  int bits() const override { return kBinBits; }
  bool indivisible() const override { return true; }
  void codes(const float* columns, int64_t begin, int64_t end, int32_t* codes,
             Isa isa) const override;
  void rank(const float* columns, const RankedCodes& ranked, Isa isa) const override;

 private:
  std::vector<float> top_set(const float* columns, Isa isa) const;

  Bins bins_;
  Densifier densifier_;
};

enum class FamilyName { kSimHash, kWta, kDwta, kDoph };

// The bits of one code.
int code_bits(FamilyName name);

// "simhash", "wta", "dwta" or "doph"; throws std::invalid_argument for anything else.
FamilyName parse_family(std::string_view name);

std::unique_ptr<HashFamily> make_family(FamilyName name, int64_t dimension, int64_t functions,
                                        uint64_t seed);

}  // namespace qcompile

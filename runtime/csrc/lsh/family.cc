#include "lsh/family.h"

namespace qcompile {

int code_bits(FamilyName name) { return name == FamilyName::kSimHash ? SimHash::kBits : kBinBits; }

std::unique_ptr<HashFamily> make_family(FamilyName name, int64_t dimension, int64_t functions,
                                        uint64_t seed) {
  switch (name) {
    case FamilyName::kSimHash:
      return std::make_unique<SimHash>(dimension, functions, seed);
    case FamilyName::kWta:
      return std::make_unique<Wta>(dimension, functions, seed);
    case FamilyName::kDwta:
      return std::make_unique<Dwta>(dimension, functions, seed);
    case FamilyName::kDoph:
      break;
  }
  return std::make_unique<Doph>(dimension, functions, seed);
}

}  // namespace qcompile

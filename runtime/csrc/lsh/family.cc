#include "lsh/family.h"

namespace qcompile {

std::unique_ptr<HashFamily> make_family(FamilyName name, int64_t dimension, int64_t functions,
                                        uint64_t seed) {
  if (name == FamilyName::kSimHash) return std::make_unique<SimHash>(dimension, functions, seed);
  return std::make_unique<Dwta>(dimension, functions, seed);
}

}  // namespace qcompile

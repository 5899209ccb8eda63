#include "lsh/family.h"

#include <stdexcept>
#include <string>
#include <utility>

namespace qcompile {

int code_bits(FamilyName name) { return name == FamilyName::kSimHash ? SimHash::kBits : kBinBits; }

FamilyName parse_family(std::string_view name) {
  constexpr std::pair<std::string_view, FamilyName> kKnown[] = {{"simhash", FamilyName::kSimHash},
                                                                {"wta", FamilyName::kWta},
                                                                {"dwta", FamilyName::kDwta},
                                                                {"doph", FamilyName::kDoph}};
  for (const auto& [known, family] : kKnown) {
    if (name == known) return family;
  }
  throw std::invalid_argument("unknown hash family '" + std::string(name) +
                              "'; known: simhash, wta, dwta, doph");
}

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

#include "core/isa.h"

#include <stdexcept>
#include <string>

namespace qcompile {

bool supported(Isa isa) {
  switch (isa) {
    case Isa::kScalar:
      return true;
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case Isa::kAvx512:
      return supported(Isa::kAvx2) && __builtin_cpu_supports("avx512f") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
  }
  return false;
}

Isa best_isa() {
  static const Isa best = supported(Isa::kAvx512) ? Isa::kAvx512
                          : supported(Isa::kAvx2) ? Isa::kAvx2
                                                  : Isa::kScalar;
  return best;
}

Isa parse_isa(std::string_view name) {
  if (name == "auto") return best_isa();
  for (auto [known, isa] : {std::pair{"scalar", Isa::kScalar}, std::pair{"avx2", Isa::kAvx2},
                            std::pair{"avx512", Isa::kAvx512}}) {
    if (name != known) continue;
    if (supported(isa)) return isa;
    throw std::invalid_argument("this processor has no " + std::string(name));
  }
  throw std::invalid_argument("unknown instruction set '" + std::string(name) +
                              "'; known: scalar, avx2, avx512, auto");
}

}  // namespace qcompile

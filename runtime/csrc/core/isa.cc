#include "core/isa.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <stdexcept>
#include <string>

namespace qcompile {
namespace {

bool has_amx() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned kTile = 1u << 24, kInt8 = 1u << 25;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kTile) == 0 || (d & kInt8) == 0)
    return false;
  // Linux lets a process use the registers' large state only if it asks.
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  static const bool granted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return granted;
}

}  // namespace

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
    case Isa::kAmx:
      return supported(Isa::kAvx512) && has_amx();
  }
  return false;
}

Isa best_isa() {
  static const Isa best = supported(Isa::kAvx512) ? Isa::kAvx512
                          : supported(Isa::kAvx2) ? Isa::kAvx2
                                                  : Isa::kScalar;
  return best;
}

Isa best_matrix_isa() {
  static const Isa best = supported(Isa::kAmx) ? Isa::kAmx : best_isa();
  return best;
}

Isa parse_isa(std::string_view name) {
  if (name == "auto") return best_isa();
  for (auto [known, isa] : {std::pair{"scalar", Isa::kScalar}, std::pair{"avx2", Isa::kAvx2},
                            std::pair{"avx512", Isa::kAvx512}, std::pair{"amx", Isa::kAmx}}) {
    if (name != known) continue;
    if (supported(isa)) return isa;
    throw std::invalid_argument("this processor has no " + std::string(name));
  }
  throw std::invalid_argument("unknown instruction set '" + std::string(name) +
                              "'; known: scalar, avx2, avx512, amx, auto");
}

}  // namespace qcompile

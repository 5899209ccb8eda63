// Random numbers that are pure functions of (seed, stream, index): neither the order in which they
// are asked for nor the number of threads changes them. runtime/reference/lsh.py has the same.
#pragma once

#include <cstdint>

namespace qcompile {

// The finaliser of splitmix64 (Steele, Lea and Flood, OOPSLA 2014), a bijection.
constexpr uint64_t mix_bits(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

constexpr uint64_t random_bits(uint64_t seed, uint64_t stream, uint64_t index) {
  return mix_bits(mix_bits(mix_bits(seed) ^ stream) ^ index);
}

// A number in [0, bound) from 64 random bits; 0 < bound <= 2^32.
constexpr uint64_t below(uint64_t bits, uint64_t bound) { return ((bits >> 32) * bound) >> 32; }

}  // namespace qcompile

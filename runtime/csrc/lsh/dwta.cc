#include "core/random.h"
#include "lsh/family.h"
#include "lsh/permutation.h"

namespace qcompile {
namespace {

constexpr uint64_t kBorrowStream = uint64_t{1} << 32;  // beyond every permutation's stream

// empty[f] gets one bit per lane whose bin holds zeros only.
QC_INLINE void winners(const float* columns, const uint32_t* coordinates, int64_t functions,
                       int32_t* codes, uint32_t* empty) {
  for (int64_t f = 0; f < functions; ++f) {
    const uint32_t* bin = coordinates + f * Dwta::kBin;
    Lanes best = load_lanes(columns + bin[0] * int64_t{kLanes});
    LaneInts place = {};
    LaneInts zero = best == 0.0f;
    for (int i = 1; i < Dwta::kBin; ++i) {
      const Lanes value = load_lanes(columns + bin[i] * int64_t{kLanes});
      const LaneInts larger = value > best;
      best = larger ? value : best;
      place = larger ? LaneInts{} + i : place;
      zero &= value == 0.0f;
    }
    std::memcpy(codes + f * kLanes, &place, sizeof place);
    uint32_t mask = 0;
    for (int lane = 0; lane < kLanes; ++lane) mask |= (zero[lane] & 1u) << lane;
    empty[f] = mask;
  }
}

void winners_scalar(const float* columns, const uint32_t* coordinates, int64_t functions,
                    int32_t* codes, uint32_t* empty) {
  winners(columns, coordinates, functions, codes, empty);
}
QC_AVX2 void winners_avx2(const float* columns, const uint32_t* coordinates, int64_t functions,
                          int32_t* codes, uint32_t* empty) {
  winners(columns, coordinates, functions, codes, empty);
}
QC_AVX512 void winners_avx512(const float* columns, const uint32_t* coordinates, int64_t functions,
                              int32_t* codes, uint32_t* empty) {
  winners(columns, coordinates, functions, codes, empty);
}

}  // namespace

Dwta::Dwta(int64_t dimension, int64_t functions, uint64_t seed)
    : HashFamily(dimension, functions), seed_(seed) {
  const int64_t slots = functions * kBin;
  coordinates_.reserve(slots + dimension);
  for (uint64_t stream = 0; static_cast<int64_t>(coordinates_.size()) < slots; ++stream) {
    const auto order = permutation(dimension, dimension, seed, stream);
    coordinates_.insert(coordinates_.end(), order.begin(), order.end());
  }
  coordinates_.resize(slots);
}

void Dwta::codes(const float* columns, int32_t* codes, Isa isa) const {
  const auto kernel = isa >= Isa::kAvx512 ? winners_avx512
                      : isa == Isa::kAvx2 ? winners_avx2
                                          : winners_scalar;
  std::vector<uint32_t> empty(functions());
  kernel(columns, coordinates_.data(), functions(), codes, empty.data());
  fill_empty(empty, codes);
}

void Dwta::fill_empty(const std::vector<uint32_t>& empty, int32_t* codes) const {
  for (int64_t f = 0; f < functions(); ++f) {
    for (int lane = 0; empty[f] >> lane; ++lane) {
      if (!(empty[f] >> lane & 1)) continue;
      // Only full bins lend, so the codes that this loop writes are never read by it.
      for (int probe = 0; probe < kProbes; ++probe) {
        const uint64_t bits = random_bits(seed_, kBorrowStream + f, probe);
        const int64_t other = static_cast<int64_t>(below(bits, functions()));
        if (empty[other] >> lane & 1) continue;
        codes[f * kLanes + lane] = codes[other * kLanes + lane];
        break;
      }
    }
  }
}

}  // namespace qcompile

#include "lsh/bins.h"

#include <algorithm>
#include <bit>

#include "core/lanes.h"
#include "core/random.h"
#include "lsh/bin_kernels.h"
#include "lsh/permutation.h"

namespace qcompile {
namespace {

constexpr uint64_t kBorrowStream = uint64_t{1} << 32;  // beyond every permutation's stream

}  // namespace

void Bins::add(const uint32_t* coordinates, int64_t width) {
  for (int i = 0; i < kBin; ++i) starts_.push_back(coordinates[i < width ? i : 0] * kLanes);
}

Bins Bins::independent(int64_t dimension, int64_t count, uint64_t seed) {
  Bins bins;
  const int64_t width = std::min<int64_t>(kBin, dimension);
  for (int64_t bin = 0; bin < count; ++bin) {
    bins.add(permutation(dimension, width, seed, bin).data(), width);
  }
  return bins;
}

Bins Bins::consecutive(int64_t dimension, int64_t count, uint64_t seed) {
  Bins bins;
  const int64_t width = std::min<int64_t>(kBin, dimension);
  for (uint64_t stream = 0; bins.count() < count; ++stream) {
    const auto order = permutation(dimension, dimension, seed, stream);
    for (int64_t at = 0; at + width <= dimension && bins.count() < count; at += width) {
      bins.add(order.data() + at, width);
    }
  }
  return bins;
}

void Bins::winners(const float* columns, int64_t begin, int64_t end, int32_t* codes,
                   Isa isa) const {
  bin_kernels(isa).winners(columns, starts_.data() + begin * kBin, end - begin, codes);
}

void Bins::rank(const float* columns, const RankedCodes& ranked, Isa isa) const {
  bin_kernels(isa).rank(columns, starts_.data(), count(), ranked);
}

void Bins::find_empty(const float* columns, uint32_t* empty, Isa isa) const {
  bin_kernels(isa).find_empty(columns, starts_.data(), count(), empty);
}

bool any_zero(const float* columns, int64_t dimension, Isa isa) {
  return bin_kernels(isa).any_zero(columns, dimension);
}

template <typename Serve>
void Densifier::borrow(int64_t bin, const uint32_t* empty, int64_t bins, uint32_t lanes,
                       Serve serve) const {
  for (int probe = 0; probe < kProbes && lanes != 0; ++probe) {
    const uint64_t bits = random_bits(seed_, kBorrowStream + bin, probe);
    const int64_t lender = static_cast<int64_t>(below(bits, bins));
    serve(lender, lanes & ~empty[lender]);
    lanes &= empty[lender];
  }
}

void Densifier::winners(const Bins& bins, const float* columns, int64_t begin, int64_t end,
                        int32_t* codes, Isa isa) const {
  std::vector<uint32_t> empty(bins.count());
  bins.find_empty(columns, empty.data(), isa);
  uint32_t nothing = ~0u, something = 0;  // rows that are empty in all bins, and in any
  for (uint32_t lanes : empty) nothing &= lanes, something |= lanes;
  if (something == 0) return bins.winners(columns, begin, end, codes, isa);
  // A lender may be any bin.
  std::vector<int32_t> all(bins.count() * kLanes);
  bins.winners(columns, 0, bins.count(), all.data(), isa);
  std::copy(all.begin() + begin * kLanes, all.begin() + end * kLanes, codes);
  for (int64_t bin = begin; bin < end; ++bin) {
    // All places of an empty bin are equal, so its code is 0 already.
    const uint32_t lanes = empty[bin] & ~nothing;
    if (lanes == 0) continue;
    borrow(bin, empty.data(), bins.count(), lanes, [&](int64_t lender, uint32_t served) {
      for (; served != 0; served &= served - 1) {
        const int lane = std::countr_zero(served);
        codes[(bin - begin) * kLanes + lane] = all[lender * kLanes + lane];
      }
    });
  }
}

void Densifier::rank(const Bins& bins, const float* columns, const RankedCodes& ranked,
                     Isa isa) const {
  bins.rank(columns, ranked, isa);
  std::vector<uint32_t> empty(bins.count());
  bins.find_empty(columns, empty.data(), isa);
  for (int64_t bin = 0; bin < bins.count(); ++bin) {
    if (empty[bin] == 0) continue;
    // Lenders are not empty, so what they lend is their own.
    borrow(bin, empty.data(), bins.count(), empty[bin], [&](int64_t lender, uint32_t served) {
      for (; served != 0; served &= served - 1) {
        const int lane = std::countr_zero(served);
        const int64_t to = bin * kLanes + lane, from = lender * kLanes + lane;
        ranked.codes[to] = ranked.codes[from];
        ranked.seconds[to] = ranked.seconds[from];
        ranked.leads[to] = ranked.leads[from];
      }
    });
  }
}

}  // namespace qcompile

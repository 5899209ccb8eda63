#include "index/greatest.h"

#include <bit>
#include <cmath>
#include <limits>

#include "core/lanes.h"
#include "index/best_scores.h"
#include "index/layout.h"

namespace qcompile {
namespace {

QC_INLINE int64_t below(const float* scores, int64_t blocks, float bar) {
  LaneInts count{};
  for (int64_t block = 0; block < blocks; ++block) {
    count -= load_lanes(scores + block * kBlockRows) < all_lanes(bar);
  }
  int64_t total = 0;
  for (int lane = 0; lane < kBlockRows; ++lane) total += count[lane];
  return total;
}
int64_t below_scalar(const float* scores, int64_t blocks, float bar) {
  return below(scores, blocks, bar);
}
QC_AVX2 int64_t below_avx2(const float* scores, int64_t blocks, float bar) {
  return below(scores, blocks, bar);
}
QC_AVX512 int64_t below_avx512(const float* scores, int64_t blocks, float bar) {
  return below(scores, blocks, bar);
}

// Integers in the order of the floats, which are not NaN, and back.
int64_t order_of(float value) {
  const auto bits = std::bit_cast<int32_t>(value);
  return bits < 0 ? int64_t{std::numeric_limits<int32_t>::min()} - bits : bits;
}
float float_of(int64_t order) {
  const int64_t bits = order < 0 ? int64_t{std::numeric_limits<int32_t>::min()} - order : order;
  return std::bit_cast<float>(static_cast<int32_t>(bits));
}

// The greatest float that at least `most` of the scores are not below; found by halving, and any
// that exactly so many are not below ends the search.
float find_bar(const float* scores, int64_t blocks, int64_t most, Isa isa) {
  const auto count_below = isa == Isa::kScalar ? below_scalar
                           : isa == Isa::kAvx2 ? below_avx2
                                               : below_avx512;
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  int64_t low = order_of(-kInfinity), high = order_of(kInfinity) + 1;
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    const int64_t reach = blocks * kBlockRows - count_below(scores, blocks, float_of(middle));
    if (reach == most) return float_of(middle);
    (reach > most ? low : high) = middle;
  }
  return float_of(low);
}

}  // namespace

void append_greatest(const float* scores, const int32_t* list, int64_t listed, int64_t most,
                     std::vector<uint64_t>& keys, Isa isa) {
  const float bar = most < listed * kBlockRows ? find_bar(scores, listed, most, isa)
                                               : -std::numeric_limits<float>::infinity();
  const auto before = static_cast<std::ptrdiff_t>(keys.size());
  each_reaching(
      scores, list, listed, isa, [bar] { return bar; },
      [&](float score, uint32_t place) { keys.push_back(rank_key(score, place)); });
  int64_t spare = std::ssize(keys) - before - most;
  // Of those that equal the bar the later ones go.
  for (auto key = keys.end(); spare > 0 && key != keys.begin() + before;) {
    --key;
    if (score_of(*key) != bar && std::isfinite(bar)) continue;
    key = keys.erase(key);
    --spare;
  }
}

}  // namespace qcompile

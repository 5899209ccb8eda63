#include <limits>

#include "core/lanes.h"
#include "core/random.h"
#include "lsh/family.h"
#include "lsh/permutation.h"

namespace qcompile {
namespace {

// One stream of random numbers for the coordinates of a function, the next one for its signs.
constexpr uint64_t kStreams = 2;

// The sum of one function for each row.
QC_INLINE Lanes project(const float* columns, const uint32_t* start, int64_t additions,
                        int64_t terms) {
  Lanes sum = {};
  for (int64_t i = 0; i < additions; ++i) sum += load_lanes(columns + start[i]);
  for (int64_t i = additions; i < terms; ++i) sum -= load_lanes(columns + start[i]);
  return sum;
}

// Functions that follow each other; see SimHash.
struct Functions {
  const uint32_t* starts;
  const uint32_t* additions;
  int64_t count;
  int64_t terms;
};

QC_INLINE void hash(const float* columns, const Functions& functions, int32_t* codes) {
  for (int64_t f = 0; f < functions.count; ++f) {
    const Lanes sum = project(columns, functions.starts + f * functions.terms,
                              functions.additions[f], functions.terms);
    const LaneInts code = (sum > 0.0f) & 1;
    std::memcpy(codes + f * kLanes, &code, sizeof code);
  }
}

void hash_scalar(const float* columns, const Functions& functions, int32_t* codes) {
  hash(columns, functions, codes);
}
QC_AVX2 void hash_avx2(const float* columns, const Functions& functions, int32_t* codes) {
  hash(columns, functions, codes);
}
QC_AVX512 void hash_avx512(const float* columns, const Functions& functions, int32_t* codes) {
  hash(columns, functions, codes);
}

QC_INLINE void rank_signs(const float* columns, const Functions& functions,
                          const RankedCodes& ranked) {
  const Lanes infinity = all_lanes(std::numeric_limits<float>::infinity());
  for (int64_t f = 0; f < functions.count; ++f) {
    const Lanes sum = project(columns, functions.starts + f * functions.terms,
                              functions.additions[f], functions.terms);
    const LaneInts code = (sum > 0.0f) & 1, second = code ^ 1;
    const Lanes lead = sum > 0.0f ? sum : -sum;
    store_lanes(ranked.leads + f * kLanes, lead >= 0.0f ? lead : infinity);
    std::memcpy(ranked.codes + f * kLanes, &code, sizeof code);
    std::memcpy(ranked.seconds + f * kLanes, &second, sizeof second);
  }
}

void rank_scalar(const float* columns, const Functions& functions, const RankedCodes& ranked) {
  rank_signs(columns, functions, ranked);
}
QC_AVX2 void rank_avx2(const float* columns, const Functions& functions,
                       const RankedCodes& ranked) {
  rank_signs(columns, functions, ranked);
}
QC_AVX512 void rank_avx512(const float* columns, const Functions& functions,
                           const RankedCodes& ranked) {
  rank_signs(columns, functions, ranked);
}

}  // namespace

SimHash::SimHash(int64_t dimension, int64_t functions, uint64_t seed)
    : HashFamily(dimension, functions), terms_((dimension + 2) / 3) {
  starts_.reserve(functions * terms_);
  additions_.reserve(functions);
  for (int64_t f = 0; f < functions; ++f) {
    const auto chosen = permutation(dimension, terms_, seed, f * kStreams);
    const size_t before = starts_.size();
    for (bool added : {true, false}) {
      for (int64_t i = 0; i < terms_; ++i) {
        const bool positive = random_bits(seed, f * kStreams + 1, i) >> 63;
        if (positive == added) starts_.push_back(chosen[i] * kLanes);
      }
      if (added) additions_.push_back(static_cast<uint32_t>(starts_.size() - before));
    }
  }
}

void SimHash::codes(const float* columns, int64_t begin, int64_t end, int32_t* codes,
                    Isa isa) const {
  const auto kernel = isa >= Isa::kAvx512 ? hash_avx512
                      : isa == Isa::kAvx2 ? hash_avx2
                                          : hash_scalar;
  kernel(columns, {starts_.data() + begin * terms_, additions_.data() + begin, end - begin, terms_},
         codes);
}

void SimHash::rank(const float* columns, const RankedCodes& ranked, Isa isa) const {
  const auto kernel = isa >= Isa::kAvx512 ? rank_avx512
                      : isa == Isa::kAvx2 ? rank_avx2
                                          : rank_scalar;
  kernel(columns, {starts_.data(), additions_.data(), functions(), terms_}, ranked);
}

}  // namespace qcompile

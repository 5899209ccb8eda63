#include "core/random.h"
#include "lsh/family.h"
#include "lsh/permutation.h"

namespace qcompile {
namespace {

// One stream of random numbers for the coordinates of a function, the next one for its signs.
constexpr uint64_t kStreams = 2;

QC_INLINE void project(const float* columns, const uint32_t* coordinates, const float* signs,
                       int64_t functions, int64_t terms, int32_t* codes) {
  for (int64_t f = 0; f < functions; ++f) {
    Lanes sum = {};
    for (int64_t i = f * terms; i < (f + 1) * terms; ++i) {
      sum += load_lanes(columns + coordinates[i] * int64_t{kLanes}) * signs[i];
    }
    const LaneInts positive = sum > 0.0f;
    for (int lane = 0; lane < kLanes; ++lane) codes[f * kLanes + lane] = -positive[lane];
  }
}

void project_scalar(const float* columns, const uint32_t* coordinates, const float* signs,
                    int64_t functions, int64_t terms, int32_t* codes) {
  project(columns, coordinates, signs, functions, terms, codes);
}
QC_AVX2 void project_avx2(const float* columns, const uint32_t* coordinates, const float* signs,
                          int64_t functions, int64_t terms, int32_t* codes) {
  project(columns, coordinates, signs, functions, terms, codes);
}
QC_AVX512 void project_avx512(const float* columns, const uint32_t* coordinates, const float* signs,
                              int64_t functions, int64_t terms, int32_t* codes) {
  project(columns, coordinates, signs, functions, terms, codes);
}

}  // namespace

SimHash::SimHash(int64_t dimension, int64_t functions, uint64_t seed)
    : HashFamily(dimension, functions), terms_((dimension + 2) / 3) {
  coordinates_.reserve(functions * terms_);
  signs_.reserve(functions * terms_);
  for (int64_t f = 0; f < functions; ++f) {
    const auto chosen = permutation(dimension, terms_, seed, f * kStreams);
    coordinates_.insert(coordinates_.end(), chosen.begin(), chosen.end());
    for (int64_t i = 0; i < terms_; ++i) {
      signs_.push_back(random_bits(seed, f * kStreams + 1, i) >> 63 ? 1.0f : -1.0f);
    }
  }
}

void SimHash::codes(const float* columns, int32_t* codes, Isa isa) const {
  const auto kernel = isa >= Isa::kAvx512 ? project_avx512
                      : isa == Isa::kAvx2 ? project_avx2
                                          : project_scalar;
  kernel(columns, coordinates_.data(), signs_.data(), functions(), terms_, codes);
}

}  // namespace qcompile

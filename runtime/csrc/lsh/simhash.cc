#include "core/lanes.h"
#include "core/random.h"
#include "lsh/family.h"
#include "lsh/permutation.h"

namespace qcompile {
namespace {

// One stream of random numbers for the coordinates of a function, the next one for its signs.
constexpr uint64_t kStreams = 2;

QC_INLINE void project(const float* columns, const uint32_t* starts, const uint32_t* additions,
                       int64_t functions, int64_t terms, int32_t* codes) {
  for (int64_t f = 0; f < functions; ++f) {
    const uint32_t* start = starts + f * terms;
    Lanes sum = {};
    for (int64_t i = 0; i < additions[f]; ++i) sum += load_lanes(columns + start[i]);
    for (int64_t i = additions[f]; i < terms; ++i) sum -= load_lanes(columns + start[i]);
    const LaneInts code = (sum > 0.0f) & 1;
    std::memcpy(codes + f * kLanes, &code, sizeof code);
  }
}

void project_scalar(const float* columns, const uint32_t* starts, const uint32_t* additions,
                    int64_t functions, int64_t terms, int32_t* codes) {
  project(columns, starts, additions, functions, terms, codes);
}
QC_AVX2 void project_avx2(const float* columns, const uint32_t* starts, const uint32_t* additions,
                          int64_t functions, int64_t terms, int32_t* codes) {
  project(columns, starts, additions, functions, terms, codes);
}
QC_AVX512 void project_avx512(const float* columns, const uint32_t* starts,
                              const uint32_t* additions, int64_t functions, int64_t terms,
                              int32_t* codes) {
  project(columns, starts, additions, functions, terms, codes);
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
  const auto kernel = isa >= Isa::kAvx512 ? project_avx512
                      : isa == Isa::kAvx2 ? project_avx2
                                          : project_scalar;
  kernel(columns, starts_.data() + begin * terms_, additions_.data() + begin, end - begin, terms_,
         codes);
}

}  // namespace qcompile

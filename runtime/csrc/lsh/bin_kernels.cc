#include "lsh/bin_kernels.h"

#include <cstring>
#include <limits>

#include "core/intrinsics.h"
#include "core/lanes.h"
#include "lsh/bins.h"

namespace qcompile {
namespace {

QC_INLINE void rank_bins(const float* columns, const uint32_t* starts, int64_t count,
                         const RankedCodes& ranked) {
  const Lanes infinity = all_lanes(std::numeric_limits<float>::infinity());
  for (int64_t bin = 0; bin < count; ++bin) {
    const uint32_t* start = starts + bin * kBin;
    const Lanes zeroth = load_lanes(columns + start[0]), first = load_lanes(columns + start[1]);
    LaneInts place = (first > zeroth) & 1, second_place = place ^ 1;
    Lanes best = first > zeroth ? first : zeroth, second = first > zeroth ? zeroth : first;
    for (int i = 2; i < kBin; ++i) {
      const Lanes value = load_lanes(columns + start[i]);
      const LaneInts here = LaneInts{} + i, wins = value > best, follows = value > second;
      second_place = wins ? place : (follows ? here : second_place);
      second = wins ? best : (follows ? value : second);
      place = wins ? here : place;
      best = wins ? value : best;
    }
    const Lanes lead = best - second;
    store_lanes(ranked.leads + bin * kLanes, lead >= 0.0f ? lead : infinity);
    std::memcpy(ranked.codes + bin * kLanes, &place, sizeof place);
    std::memcpy(ranked.seconds + bin * kLanes, &second_place, sizeof second_place);
  }
}
void rank_scalar(const float* columns, const uint32_t* starts, int64_t count,
                 const RankedCodes& ranked) {
  rank_bins(columns, starts, count, ranked);
}
QC_AVX2 void rank_avx2(const float* columns, const uint32_t* starts, int64_t count,
                       const RankedCodes& ranked) {
  rank_bins(columns, starts, count, ranked);
}
QC_AVX512 void rank_avx512(const float* columns, const uint32_t* starts, int64_t count,
                           const RankedCodes& ranked) {
  rank_bins(columns, starts, count, ranked);
}

void winners_scalar(const float* columns, const uint32_t* starts, int64_t count, int32_t* codes) {
  for (int64_t bin = 0; bin < count; ++bin) {
    for (int lane = 0; lane < kLanes; ++lane) {
      float best = columns[starts[bin * kBin] + lane];
      int32_t place = 0;
      for (int i = 1; i < kBin; ++i) {
        const float value = columns[starts[bin * kBin + i] + lane];
        if (value > best) best = value, place = i;
      }
      codes[bin * kLanes + lane] = place;
    }
  }
}

void find_empty_scalar(const float* columns, const uint32_t* starts, int64_t count,
                       uint32_t* empty) {
  for (int64_t bin = 0; bin < count; ++bin) {
    empty[bin] = 0;
    for (int lane = 0; lane < kLanes; ++lane) {
      bool zeros = true;
      for (int i = 0; i < kBin; ++i) zeros &= columns[starts[bin * kBin + i] + lane] == 0.0f;
      empty[bin] |= static_cast<uint32_t>(zeros) << lane;
    }
  }
}

bool any_zero_scalar(const float* columns, int64_t dimension) {
  for (int64_t i = 0; i < dimension * kLanes; ++i) {
    if (columns[i] == 0.0f) return true;
  }
  return false;
}

QC_AVX2 void winners_avx2(const float* columns, const uint32_t* starts, int64_t count,
                          int32_t* codes) {
  for (int64_t bin = 0; bin < count; ++bin) {
    const uint32_t* start = starts + bin * kBin;
    for (int half = 0; half < kLanes; half += 8) {
      __m256 best = _mm256_loadu_ps(columns + start[0] + half);
      __m256 place = _mm256_setzero_ps();
#pragma GCC unroll 8
      for (int i = 1; i < kBin; ++i) {
        const __m256 value = _mm256_loadu_ps(columns + start[i] + half);
        const __m256 larger = _mm256_cmp_ps(value, best, _CMP_GT_OQ);
        place = _mm256_blendv_ps(place, _mm256_castsi256_ps(_mm256_set1_epi32(i)), larger);
        best = _mm256_max_ps(value, best);  // the second operand unless the first is larger
      }
      _mm256_storeu_ps(reinterpret_cast<float*>(codes + bin * kLanes + half), place);
    }
  }
}

QC_AVX2 void find_empty_avx2(const float* columns, const uint32_t* starts, int64_t count,
                             uint32_t* empty) {
  for (int64_t bin = 0; bin < count; ++bin) {
    const uint32_t* start = starts + bin * kBin;
    empty[bin] = 0;
    for (int half = 0; half < kLanes; half += 8) {
      __m256 bits = _mm256_setzero_ps();  // of all values; no more than a sign if they are zero
      for (int i = 0; i < kBin; ++i) {
        bits = _mm256_or_ps(bits, _mm256_loadu_ps(columns + start[i] + half));
      }
      const __m256i magnitude = _mm256_slli_epi32(_mm256_castps_si256(bits), 1);
      const __m256i zeros = _mm256_cmpeq_epi32(magnitude, _mm256_setzero_si256());
      const int lanes = _mm256_movemask_ps(_mm256_castsi256_ps(zeros));
      empty[bin] |= static_cast<uint32_t>(lanes) << half;
    }
  }
}

QC_AVX2 bool any_zero_avx2(const float* columns, int64_t dimension) {
  __m256 zeros = _mm256_setzero_ps();
  for (int64_t i = 0; i < dimension * kLanes; i += 8) {
    const __m256 value = _mm256_loadu_ps(columns + i);
    zeros = _mm256_or_ps(zeros, _mm256_cmp_ps(value, _mm256_setzero_ps(), _CMP_EQ_OQ));
  }
  return _mm256_movemask_ps(zeros) != 0;
}

QC_AVX512 void winners_avx512(const float* columns, const uint32_t* starts, int64_t count,
                              int32_t* codes) {
  for (int64_t bin = 0; bin < count; ++bin) {
    const uint32_t* start = starts + bin * kBin;
    __m512 best = _mm512_loadu_ps(columns + start[0]);
    __m512i place = _mm512_setzero_si512();
#pragma GCC unroll 8
    for (int i = 1; i < kBin; ++i) {
      const __m512 value = _mm512_loadu_ps(columns + start[i]);
      const __mmask16 larger = _mm512_cmp_ps_mask(value, best, _CMP_GT_OQ);
      place = _mm512_mask_mov_epi32(place, larger, _mm512_set1_epi32(i));
      best = _mm512_max_ps(value, best);  // the second operand unless the first is larger
    }
    _mm512_storeu_si512(codes + bin * kLanes, place);
  }
}

QC_AVX512 void find_empty_avx512(const float* columns, const uint32_t* starts, int64_t count,
                                 uint32_t* empty) {
  for (int64_t bin = 0; bin < count; ++bin) {
    const uint32_t* start = starts + bin * kBin;
    __m512i bits = _mm512_setzero_si512();  // of all values; no more than a sign if they are zero
    for (int i = 0; i < kBin; ++i) {
      bits = _mm512_or_si512(bits, _mm512_loadu_si512(columns + start[i]));
    }
    empty[bin] = _mm512_testn_epi32_mask(bits, _mm512_set1_epi32(0x7fffffff));
  }
}

QC_AVX512 bool any_zero_avx512(const float* columns, int64_t dimension) {
  __mmask16 zeros = 0;
  for (int64_t j = 0; j < dimension; ++j) {
    const __m512 value = _mm512_loadu_ps(columns + j * kLanes);
    zeros |= _mm512_cmp_ps_mask(value, _mm512_setzero_ps(), _CMP_EQ_OQ);
  }
  return zeros != 0;
}

constexpr BinKernels kScalar = {winners_scalar, rank_scalar, find_empty_scalar, any_zero_scalar};
constexpr BinKernels kAvx2 = {winners_avx2, rank_avx2, find_empty_avx2, any_zero_avx2};
constexpr BinKernels kAvx512 = {winners_avx512, rank_avx512, find_empty_avx512, any_zero_avx512};

}  // namespace

const BinKernels& bin_kernels(Isa isa) {
  return isa >= Isa::kAvx512 ? kAvx512 : isa == Isa::kAvx2 ? kAvx2 : kScalar;
}

}  // namespace qcompile

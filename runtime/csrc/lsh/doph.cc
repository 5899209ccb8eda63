#include "core/lanes.h"
#include "lsh/family.h"

namespace qcompile {
namespace {

QC_INLINE LaneInts load_ints(const float* from) {
  LaneInts ints;
  std::memcpy(&ints, from, sizeof ints);
  return ints;
}

// members [dimension, kLanes]: 1 where a value is not zero and not below the count-th largest of
// its row, else 0.
QC_INLINE void mark_largest(const float* columns, int64_t dimension, int64_t count,
                            float* members) {
  // First, integers in the order of the values; NaN comes first or last.
  for (int64_t at = 0; at < dimension * kLanes; at += kLanes) {
    const LaneInts bits = load_ints(columns + at);
    const LaneInts ordered = bits ^ ((bits >> 31) & 0x7fffffff);
    std::memcpy(members + at, &ordered, sizeof ordered);
  }
  // The greatest threshold that `count` values reach, found bit by bit, the highest first. Its
  // order is that of unsigned integers; the highest bit, flipped, makes it that of signed ones.
  LaneInts threshold = {};
  for (int bit = 31; bit >= 0; --bit) {
    const LaneInts higher = threshold | static_cast<int32_t>(1u << bit);
    const LaneInts least = higher ^ INT32_MIN;
    LaneInts reached = {};
    for (int64_t j = 0; j < dimension; ++j) reached -= load_ints(members + j * kLanes) >= least;
    threshold = reached >= static_cast<int32_t>(count) ? higher : threshold;
  }
  const LaneInts least = threshold ^ INT32_MIN;
  const Lanes one = all_lanes(1.0f), zero = {};
  for (int64_t at = 0; at < dimension * kLanes; at += kLanes) {
    const LaneInts member = (load_ints(members + at) >= least) & (load_lanes(columns + at) != 0.0f);
    store_lanes(members + at, member ? one : zero);
  }
}

void mark_scalar(const float* columns, int64_t dimension, int64_t count, float* members) {
  mark_largest(columns, dimension, count, members);
}
QC_AVX2 void mark_avx2(const float* columns, int64_t dimension, int64_t count, float* members) {
  mark_largest(columns, dimension, count, members);
}
QC_AVX512 void mark_avx512(const float* columns, int64_t dimension, int64_t count, float* members) {
  mark_largest(columns, dimension, count, members);
}

}  // namespace

Doph::Doph(int64_t dimension, int64_t functions, uint64_t seed)
    : HashFamily(dimension, functions),
      bins_(Bins::consecutive(dimension, functions, seed)),
      densifier_(seed) {}

std::vector<float> Doph::top_set(const float* columns, Isa isa) const {
  const auto mark = isa >= Isa::kAvx512 ? mark_avx512 : isa == Isa::kAvx2 ? mark_avx2 : mark_scalar;
  std::vector<float> members(dimension() * kLanes);
  mark(columns, dimension(), top_values(dimension()), members.data());
  return members;
}

void Doph::codes(const float* columns, int64_t begin, int64_t end, int32_t* codes, Isa isa) const {
  const std::vector<float> members = top_set(columns, isa);
  // The first member of a bin is the first of its largest values.
  densifier_.winners(bins_, members.data(), begin, end, codes, isa);
}

// The code that comes second is the second member of a bin, with no lead over it, or a place that
// is none, with a lead of one.
void Doph::rank(const float* columns, const RankedCodes& ranked, Isa isa) const {
  densifier_.rank(bins_, top_set(columns, isa).data(), ranked, isa);
}

}  // namespace qcompile
